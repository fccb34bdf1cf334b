# The agents' own token: their node's entry, and taking away the instances whose check stayed critical too long.
node_prefix "" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}
