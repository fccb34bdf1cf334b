# Without a token, on a developer's machine: enough for the UI to show services and nodes. Not given with CONSUL_PRODUCTION=1.
service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
