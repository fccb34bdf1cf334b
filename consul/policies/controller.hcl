# The edge controller: it follows everything, and writes its verdicts.
service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

key_prefix "edge/policy/" {
  policy = "read"
}

key_prefix "edge/status/" {
  policy = "write"
}

# Which service owns which prefix: all edges agree on it here.
key "edge/owners" {
  policy = "write"
}
