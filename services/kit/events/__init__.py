"""Events: what has happened in a service, for every service that wants to hear of it.

publish ─▶ outbox row, in the transaction that brings it about ─▶ relay ─▶ stream of the producer ─▶ consumer of a service
        ─▶ function, in a transaction with the event's id; later again what fails, and in the end the dead letters
"""
