-- The head of a stream has not come in time: 504, with the body that the configuration has made. HAProxy's own rules for
-- responses cannot answer at this point, and a closed connection would tell the client nothing.
core.register_action("late", { "tcp-res" }, function(txn)
    local reply = txn:reply({ status = 504, reason = "Gateway Timeout" })
    reply:add_header("Content-Type", "application/problem+json")
    reply:add_header("Cache-Control", "no-store")
    reply:add_header("X-Content-Type-Options", "nosniff")
    reply:add_header("X-Frame-Options", "DENY")
    reply:add_header("Referrer-Policy", "no-referrer")
    reply:set_body(txn:get_var("txn.page"))
    txn:done(reply)
end)
