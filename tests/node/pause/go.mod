module conntrack-operator.io/tests/pause

go 1.26.0
