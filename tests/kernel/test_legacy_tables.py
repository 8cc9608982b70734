"""Shapes of iptables-legacy's tables on a real kernel: told where there are tables, and nothing is made by asking."""

from conntrack_operator.kernel.legacy_tables import read_shapes


def test_shapes_move_with_rules(netns):
    """None where it was never used; another one for each rule more or less, the old one when the rules are back."""
    node = netns.namespace()

    def shapes():
        with node.inside():
            return read_shapes()

    assert shapes() == shapes() == ()
    assert node.run("cat", "/proc/net/ip_tables_names").stdout == ""
    seen = []
    for command in ("-A INPUT -j ACCEPT", "-A INPUT -p tcp -j ACCEPT", "-D INPUT 2", "-F"):
        node.run("iptables-legacy", *command.split())
        seen.append(shapes())
    assert len(set(seen)) == 3
    assert seen[0] == seen[2]
    assert all(len(each) == 1 for each in seen)
    node.run("ip6tables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    assert len(shapes()) == 2
