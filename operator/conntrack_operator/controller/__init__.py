"""The controller: what people want, told to each node; what the nodes are, told to people. One process in a cluster."""
