# The agent of a machine that runs instances and no server. Its local file gives `bind_addr`, `retry_join` and the
# gossip key. Instances register with this agent, on loopback.

server = false

# A machine that is shut down in order leaves, and its instances leave with it.
leave_on_terminate = true
