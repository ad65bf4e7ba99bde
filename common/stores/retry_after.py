"""When a busy server wants to be asked again: its Retry-After, which the clients that read from it keep to themselves.

Retry-After: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
"""

import email.utils
import time
import urllib.error
import urllib.request

TIMEOUT_S = 5.0


def ask_retry_after(contact, url, headers):
    """Ask for one byte and note in a Contact until when the answer wants us to wait, unless that is noted already.

    url: function that gives it. headers: dict. What goes wrong here is no matter: the usual pauses hold then.
    """
    with contact.asking:
        if contact.not_before > time.monotonic():
            return
        try:
            request = urllib.request.Request(url(), headers={"Range": "bytes=0-0", **headers})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            seconds = seconds_of(error.headers.get("Retry-After"))
            error.close()
        except Exception:
            return
        contact.not_before = time.monotonic() + seconds


def seconds_of(value):
    """Seconds from now that a Retry-After header means, a number of them or a date; 0 for anything else."""
    try:
        return max(0.0, float(int(value)))
    except (TypeError, ValueError):
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
