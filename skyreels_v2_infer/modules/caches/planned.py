"""A plan's settings -> the cache that executes them."""

from skyreels_v2_infer.modules.caches.base import Cache
from skyreels_v2_infer.modules.caches.easycache import EasyCache
from skyreels_v2_infer.modules.caches.magcache import MagCache
from skyreels_v2_infer.modules.caches.teacache import TeaCache
from skyreels_v2_infer.plan.cache_settings import CachePlan, EasyCachePlan, MagCachePlan, TeaCachePlan


def planned_cache(plan: CachePlan | None) -> Cache | None:
    """The cache of a plan that has been completed with the model's values; None: none."""
    match plan:
        case None:
            return None
        case TeaCachePlan(threshold, ret_steps, coefficients):
            return TeaCache(threshold, coefficients, bool(ret_steps))
        case EasyCachePlan(threshold, retention):
            return EasyCache(threshold, retention)
        case MagCachePlan(threshold, skips, retention, ratios):
            half = len(ratios) // 2
            return MagCache(threshold, skips, retention, (ratios[:half], ratios[half:]))
    raise TypeError(f"{plan!r} is no cache")
