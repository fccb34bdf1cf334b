"""The cache of the gateways: answers in Redis with an in-process layer over it (RFC 9111), single flight, and invalidation.

    AnswerCache.serve → rules (may a stored answer be given?) → Engine.obtain: memory, store, or Loader.load (ask, and store)

`key` names answers, `link` hears of changes and keeps in touch with Redis, `last_good` finds what services have kept.
"""

from gateway.cache.cache import AnswerCache
from gateway.cache.rules import PartPolicy

__all__ = ["AnswerCache", "PartPolicy"]
