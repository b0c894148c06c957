"""How often a key may ask."""

import time
from threading import Lock

from service.problems import Problem


class TooMany(Problem):
    """More than the key may have."""

    kind, title, status = "too-many-requests", "The key's limit is reached", 429

    def __init__(self, limit: str, most: int, remedy: str, retry_seconds: float) -> None:
        self.headers = {"retry-after": str(max(1, round(retry_seconds)))}
        super().__init__(f"the key may have {most:,} {limit.replace('_', ' ')}, and has them. {remedy}", limit=limit, most=most)


class Rates:
    """Requests of each key: as many at once as a minute allows, then as they drip back."""

    def __init__(self) -> None:
        self._lock, self._left = Lock(), dict[str, tuple[float, float]]()

    def take(self, key_id: str, per_minute: int) -> None:
        """
        Raises:
            TooMany: none is left.
        """
        with self._lock:
            at = time.monotonic()
            left, since = self._left.get(key_id, (float(per_minute), at))
            left = min(per_minute, left + (at - since) * per_minute / 60)
            if left < 1:
                raise TooMany("requests_per_minute", per_minute, "Wait a little.", (1 - left) * 60 / per_minute)
            self._left[key_id] = left - 1, at
