"""Why a connection failed, from the nested texts of obstore's errors, in words that a user can act on."""

import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

# The certificate, first; then what the system said; each with what it means. The first that occurs is the innermost cause.
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*([A-Za-z]+)|certificate verify failed[^\"]*?: ([^\"():]+)")
_CERTIFICATES = {
    "UnknownIssuer": "nobody known has issued it",
    "Expired": "it has expired",
    "NotValidYet": "it is not valid yet; is the clock right?",
    "NotValidForName": "it is of another host",
    "NotValidForNameContext": "it is of another host",
}
_CAUSES = (
    ("InvalidContentType", "the server does not speak https on this port"),
    ("ConnectionRefused", "connection refused"),
    ("ConnectionReset", "connection reset"),
    ("dns error", "no such host: its name cannot be resolved"),
    ("NetworkUnreachable", "network unreachable"),
    ("HostUnreachable", "host unreachable"),
    ("IncompleteMessage", "the server closed the connection before its answer was whole"),
    ("UnexpectedEof", "the server closed the connection before its answer was whole"),
    ("TimedOut", "no answer in time"),
    ("kind: Timeout", "no answer in time"),
    ("tunnel", "the proxy does not let through"),
    ("Parse(", "what answers there does not speak http"),
)


def certificate_fault(text):
    """What is wrong with the server's certificate, from an error's whole text; "" where it is something else."""
    match = _CERTIFICATE.search(text)
    if not match:
        return ""
    reason = match[1] or match[2].strip()
    return f"its certificate is not accepted: {_CERTIFICATES.get(reason, reason)}"


def innermost(text):
    """The innermost cause of a failed connection, from an error's whole text; "" where none is known."""
    fault = certificate_fault(text)
    if fault:
        return fault
    for mark, meaning in _CAUSES:
        if mark in text:
            return meaning
    said = re.findall(r"(?:message|error): \"([^\"]+)\"", text)
    return said[-1] if said else ""


def proxy_of(url):
    """Text such as " (through the proxy that HTTPS_PROXY names)" where the environment sends a URL to one; else ""."""
    parts = urlsplit(url)
    proxies = getproxies()
    if not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    kind = parts.scheme if parts.scheme in proxies else "all"
    return f" (through the proxy that {kind.upper()}_PROXY names)" if kind in proxies else ""
