# The token of one service: it registers its own name and no other, and finds everybody.
service "@NAME@" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

agent_prefix "" {
  policy = "read"
}
