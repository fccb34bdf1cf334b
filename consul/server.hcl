# One server, the default of `make up`. Nothing of it listens beyond loopback.

server           = true
bootstrap_expect = 1
bind_addr        = "127.0.0.1"
ui               = true

# Alone, it elects itself: there is never another server to wait for.
performance {
  raft_multiplier = 1
}
