"""Which addresses of the web are opened: redirections and names do not lead into the machine or its network.

An address that somebody else has written (a shared command, a web page that redirects) could otherwise make this
program ask what only this machine may: a service on 127.0.0.1, a router, a cloud's metadata at 169.254.169.254.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from skyreels_v2_infer.errors import InputError

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

_LOCAL_NAMES = (".local", ".localhost", ".lan", ".home.arpa")
# Of companies and homes (RFC 1918, 4193), and of providers' and overlay networks (RFC 6598).
_PRIVATE = [
    ipaddress.ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(number: str) -> bool:
    """Whether an IP address is one of the public internet; private, loopback, link-local and the like are not."""
    address = ipaddress.ip_address(number.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if address in _NAT64:
        inner = ipaddress.ip_address(int(address) & 0xFFFFFFFF)
    return (inner or address).is_global and not (inner or address).is_multicast


def is_private(number: str) -> bool:
    """Whether an IP address is one of a private network, not of this machine or its link."""
    address = ipaddress.ip_address(number.partition("%")[0])
    return any(address.version == network.version and address in network for network in _PRIVATE)


def is_local(host: str) -> bool:
    """Whether a host is plainly one of this network: a name without a dot, of a local domain, or a number that is not
    public."""
    with suppress(ValueError):
        return not is_public(host.strip("[]"))
    return "." not in host.rstrip(".") or host.lower().rstrip(".").endswith(_LOCAL_NAMES)


def opener(address: str) -> OpenerDirector:
    """Opens `address`, and follows redirections of http and https. The standard opener follows to ftp, and anywhere.

    A host that is not public is reached only if `address` names it plainly (see `is_local`), or if it is in a private
    network, where a company's names lead; not by a redirection from another host. Behind a proxy, which looks up names
    itself, only numbers are known.

    Raises, when it opens one:
        InputError: it leads elsewhere.
    """
    from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener

    own = _host(address)

    def may_reach(host: str, number: str) -> bool:
        return is_public(number) or (host == own and (is_local(own) or is_private(number)))

    class Redirects(HTTPRedirectHandler):
        def redirect_request(self, request, file, code, reason, headers, target):
            if not target.lower().startswith(("http://", "https://")):
                raise InputError("", target, f"leads to {target}, which is no address of http or https")
            host = _host(target)
            if host != own and is_local(host):
                raise _inside(host)
            return super().redirect_request(request, file, code, reason, headers, target)

    class Plain(HTTPHandler):
        def http_open(self, request):
            return self.do_open(_limited(_Plain, None if request.has_proxy() else may_reach), request)

    class Encrypted(HTTPSHandler):
        def https_open(self, request):
            by_proxy = request.has_proxy() or getattr(request, "_tunnel_host", None)
            return self.do_open(_limited(_Encrypted, None if by_proxy else may_reach), request)

    return build_opener(Redirects, Plain, Encrypted)


class _Plain(HTTPConnection):
    """Connects to a host whose numbers it all `may_reach`, by name and number; None: to any."""

    may_reach: Callable[[str, str], bool] | None = None

    def connect(self) -> None:
        # What is looked up here is what is connected to: another answer to a second question would evade the check.
        if self.may_reach is not None:
            numbers = [found[4][0] for found in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)]
            for number in numbers:
                if not self.may_reach(self.host.lower(), number):
                    raise _inside(number)
            self._create_connection = lambda _, *more: _first_of(numbers, self.port, *more)
        super().connect()


class _Encrypted(HTTPSConnection, _Plain):
    pass


def _limited(kind: type[_Plain], may_reach: Callable[[str, str], bool] | None) -> Callable[..., _Plain]:
    """Makes connections of a kind with their limits."""

    def connection(*args, **more) -> _Plain:
        made = kind(*args, **more)
        made.may_reach = may_reach
        return made

    return connection


def _first_of(numbers: list[str], port: int, *more: object) -> socket.socket:
    """A connection to the first of several numbers of a host that answers."""
    for number in numbers[:-1]:
        with suppress(OSError):
            return socket.create_connection((number, port), *more)
    return socket.create_connection((numbers[-1], port), *more)


def _host(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _inside(host: str) -> InputError:
    legal = f"leads to {host}, which is not public; give such an address itself, or download the file"
    return InputError("", host, legal)
