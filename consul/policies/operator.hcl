# A person at the keyboard: sees everything but the tokens, and pins paths to their owners.
service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

agent_prefix "" {
  policy = "read"
}

key_prefix "edge/policy/" {
  policy = "write"
}

# Where it is deleted, the edges agree again from what each remembers.
key "edge/owners" {
  policy = "write"
}

key_prefix "edge/status/" {
  policy = "read"
}

operator = "read"
