"""A rule's text in a sentence."""

from conntrack_operator.decide.refusal import shorter


def test_a_long_comment_goes_before_what_the_rule_does():
    """What a rule matches stays in sight, and short comments, which name a Service, stay whole."""
    rule = '-A INPUT -p tcp -m comment --comment "{}" -m multiport --dports 80,443 -m conntrack --ctstate NEW -j ACCEPT'
    told = shorter(rule.format('he said \\"yes\\" ' * 20), 160)
    assert told.endswith('..." -m multiport --dports 80,443 -m conntrack --ctstate NEW -j ACCEPT')
    assert shorter(rule.format("default/shop:http"), 160) == rule.format("default/shop:http")
    assert len(shorter("x" * 500)) == 120
