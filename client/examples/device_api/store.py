"""The devices, in memory. A real one would add a DeviceScope to its query; here it filters a list."""

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from texture_auth import DeviceScope


@dataclass
class Device:
    """A device, and whose it is."""

    device_id: str
    workspace_id: str
    reference_id: str
    manufacturer: str
    charge_percent: int

    def public(self) -> dict[str, Any]:
        """Return what a customer sees of it."""
        hidden = {"workspace_id", "reference_id"}
        return {name: value for name, value in asdict(self).items() if name not in hidden}


class Store:
    """Some devices of two workspaces."""

    def __init__(self) -> None:
        self._devices = {
            device.device_id: device
            for device in (
                Device("battery-1", "acme", "user-1", "heliovolt", 81),
                Device("charger-9", "acme", "user-9", "voltway", 40),
                Device("thermostat-4", "globex", "user-4", "warmly", 97),
            )
        }
        self._changed = threading.Condition()

    def get(self, device_id: str) -> Device:
        """Return a device. Raises KeyError."""
        return self._devices[device_id]

    def within(self, scope: DeviceScope) -> list[Device]:
        """Return the devices that a list may contain."""
        return [
            device
            for device in self._devices.values()
            if scope.admits(
                workspace_id=device.workspace_id, reference_id=device.reference_id, manufacturer=device.manufacturer
            )
        ]

    def command(self, device_id: str, command: str) -> None:
        """Tell a device what to do: `charge` is all that these understand. Raises KeyError."""
        with self._changed:
            self.get(device_id).charge_percent += command == "charge"
            self._changed.notify_all()

    def states(self, device_id: str) -> Iterator[Device | None]:
        """Yield a device, and again at each command; None now and then, to see whether anybody still listens."""
        device = self.get(device_id)
        yield device
        while True:
            with self._changed:
                changed = self._changed.wait(1)
            yield device if changed else None
