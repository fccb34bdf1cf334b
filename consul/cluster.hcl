# One of three servers: any one may be lost. Start each with its own local file, which has to give `bind_addr` (an
# address that the other two reach), `retry_join` (all three) and the gossip key that they share.

server           = true
bootstrap_expect = 3
ui               = true

# A server that comes back after `make down` is still a member.
leave_on_terminate   = false
skip_leave_on_interrupt = true

autopilot {
  cleanup_dead_servers      = true
  last_contact_threshold    = "500ms"
  server_stabilization_time = "10s"
}
