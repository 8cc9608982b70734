"""The kernel's edge: netlink, sysctls, nft, the state directory. Reads and writes; decides nothing."""
