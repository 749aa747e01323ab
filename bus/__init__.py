"""Moving messages: the caller's bus, the connection under it, the embedded server."""

from xnai.bus.bus import Bus, open_bus
from xnai.bus.server import Server, ServerOptions, open_server
from xnai.bus.streams import Limits

__all__ = ["Bus", "Limits", "Server", "ServerOptions", "open_bus", "open_server"]
