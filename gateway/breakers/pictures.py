"""Every process publishes a picture of its breakers; whoever is asked shows those of all gateways."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from discovery.calls.client import ServiceClient
from discovery.clock import Clock
from discovery.consul.static import Reading
from discovery.model import Domain
from discovery.resilience.breaker import REMEMBERED
from gateway.breakers import messages as shapes
from gateway.breakers.messages import BreakerPicture, Picture
from gateway.redis_link import Away, Line

GATEWAY = "gateway-"
# A process that has not said anything for so long is shown as silent.
TTL_S = 3.0

Members = dict[Domain, dict[str, Picture | None]]


class Pictures:
    """The pictures of one process, and what it finds of others. `obeyed` are the ids of the last orders carried out."""

    def __init__(
        self,
        client: ServiceClient,
        view: Reading,
        line: Line,
        group: Domain,
        instance: str,
        clock: Clock,
    ) -> None:
        self._client = client
        self._view = view
        self._line = line
        self._group = group
        self._instance = instance
        self._clock = clock
        self.obeyed: deque[str] = deque(maxlen=32)

    def own(self, transitions: int = REMEMBERED, *, quiet: bool = True) -> Picture:
        """This process's breakers now, with their last transitions; without those that never changed unless `quiet`.

        A service that has left the catalog is left out, once its breaker is closed.
        """
        known = self._view.snapshot().services
        return Picture(
            instance=self._instance,
            group=self._group,
            at=round(self._clock.time(), 3),
            sharing=self._line.hearing,
            obeyed=tuple(self.obeyed),
            breakers={
                service: BreakerPicture.of(snapshot, transitions)
                for service, snapshot in self._client.breakers().items()
                if snapshot.state != "closed" or (service in known and (quiet or snapshot.number))
            },
        )

    def publish(self) -> None:
        """Show it to the others, in less detail where it would be too long to be read. Raises Away."""
        picture = self.own().model_dump_json().encode()
        if len(picture) > shapes.MAX_PICTURE_BYTES:
            picture = self.own(1, quiet=False).model_dump_json().encode()
        key = shapes.picture_key(self._group, self._instance)
        self._line.write(lambda pipe: pipe.set(key, picture, px=int(TTL_S * 1000)))

    def members(self, groups: Iterable[Domain]) -> tuple[Members, bool]:
        """Of each group, its instances in the catalog and the picture that each has published; and whether Redis answered.

        None for an instance that is silent. This process's own picture is always there.
        """
        snapshot = self._view.snapshot()
        found: Members = {
            group: dict.fromkeys(sorted(each.id for each in snapshot.instances(GATEWAY + group)))
            for group in groups
        }
        places = [(group, id_) for group, ids in found.items() for id_ in ids if id_ != self._instance]
        # Its own key among them: there is always something to ask Redis for.
        keys = [shapes.picture_key(group, id_) for group, id_ in [*places, (self._group, self._instance)]]
        try:
            values = self._line.read(keys, shapes.MAX_PICTURE_BYTES)[:-1]
            reached = True
        except Away:
            values, reached = [None] * len(places), False
        for (group, id_), data in zip(places, values, strict=True):
            picture = shapes.read(Picture, data, shapes.MAX_PICTURE_BYTES)
            if picture is not None and (picture.instance, picture.group) == (id_, group):
                found[group][id_] = picture
        if self._group in found:
            found[self._group][self._instance] = self.own()
        return found, reached
