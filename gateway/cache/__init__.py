"""The cache of the gateways: answers in Redis with an in-process layer over it (RFC 9111), single flight, and invalidation."""

from gateway.cache.cache import AnswerCache
from gateway.cache.policy import Part, PartPolicy

__all__ = ["AnswerCache", "Part", "PartPolicy"]
