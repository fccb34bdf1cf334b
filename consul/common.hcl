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

limits {
  # The default of 200 is one service client away from a refusal on a machine that runs hundreds of instances.
  http_max_conns_per_client = 1000
}

ports {
  grpc     = -1
  serf_wan = -1
}
