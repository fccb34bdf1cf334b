# Every agent of Breakwater. What differs from machine to machine (ports, node name, data_dir, gossip key, join
# addresses, the agent's own token) is given in one more file, mode 600, that `stack` writes on first start.

datacenter         = "dc1"
client_addr        = "127.0.0.1"
log_level          = "INFO"
disable_update_check = true

# Nothing that registers a service may make the agent run a command.
enable_script_checks       = false
enable_local_script_checks = false
disable_remote_exec        = true

acl {
  enabled                  = true
  default_policy           = "deny"
  # With the servers out of reach, known tokens go on working from the agent's cache.
  down_policy              = "extend-cache"
  enable_token_persistence = true
}

http_config {
  # A transaction asks whether the token may write the service that the *body* names, and then deletes whatever id it names;
  # the catalog's registration asks so of a check. The token of one service would take any other away, or its check (1.8.7).
  # Nothing of ours uses them: instances register with the agent.
  block_endpoints = ["/v1/txn", "/v1/catalog/register"]
}

limits {
  # The default of 200 is one service client away from a refusal on a machine that runs hundreds of instances.
  http_max_conns_per_client = 1000
}

ports {
  grpc     = -1
  serf_wan = -1
}
