"""Where the API lives: regions, hosts, and which addresses a secret may be sent to."""

import ipaddress
from difflib import get_close_matches

import httpx

REGIONS = (
    "cn-north-1",
    "cn-north-4",
    "cn-east-2",
    "cn-east-3",
    "cn-south-1",
    "cn-south-2",
    "cn-southwest-2",
    "ap-southeast-3",
    "sa-brazil-1",
    "la-north-2",
    "la-south-2",
    "tr-west-1",
)
"""Regions whose CodeArts Build host follows the common pattern; other sites need an endpoint."""


class EndpointError(ValueError):
    """An endpoint that cannot or must not be used; one line, for the user."""


def endpoint_for_region(name: str) -> str:
    """Return the CodeArts Build endpoint of a region.

    Raises:
        EndpointError: the region is not in ``REGIONS``.
    """
    if name not in REGIONS:
        raise _unknown_region(name)
    return f"https://cloudbuild-ext.{name}.myhuaweicloud.com"


def _unknown_region(name: str) -> EndpointError:
    close = get_close_matches(name, REGIONS, n=1, cutoff=0.8)
    meant = f"did you mean {close[0]}? " if close else ""
    return EndpointError(f"unknown region {name!r}; {meant}known: {', '.join(REGIONS)}")


def iam_endpoint_for_region(name: str) -> str:
    """Return the IAM endpoint of a region, the global one where the name is empty.

    Raises:
        EndpointError: the region is not in ``REGIONS``.
    """
    if name and name not in REGIONS:
        raise _unknown_region(name)
    return f"https://iam.{name + '.' if name else ''}myhuaweicloud.com"


def check_endpoint(text: str) -> str:
    """Return an endpoint without trailing slash, once it is known to be safe to speak to.

    Raises:
        EndpointError: it is no http(s) URL, holds a user, query or fragment, or would send
            credentials in the clear to another machine.
    """
    try:
        url = httpx.URL(text)
        url.host.encode("idna")  # as the resolver will
    except (httpx.InvalidURL, TypeError, UnicodeError):
        raise EndpointError("the endpoint is not a URL") from None
    if url.userinfo:
        raise EndpointError("the endpoint must not hold a user name or password")
    if url.scheme not in {"http", "https"} or not url.host:
        raise EndpointError(f"endpoint {text!r} is not an https:// URL")
    if url.query or url.fragment:
        raise EndpointError(f"endpoint {text!r} must have no query and no fragment")
    if url.scheme == "http" and not is_loopback(url.host):
        raise EndpointError(f"endpoint {text!r} must be https: plain http is for loopback only")
    return str(url).rstrip("/")


def is_loopback(host: str) -> bool:
    """Tell whether a host name is this machine's own, by its spelling alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
