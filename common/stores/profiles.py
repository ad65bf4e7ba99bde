"""Access to S3 as the AWS command line has it: AWS_PROFILE and the INI files, of which obstore reads nothing.

Read are keys, region and endpoint of a profile. What a profile gets its keys by from elsewhere (single sign-on, roles,
commands) is refused by name.
Format: https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html
"""

import configparser
import os
from pathlib import Path

from common.errors import StoreError

_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_ELSEWHERE = {
    "sso_session": "single sign-on",
    "sso_start_url": "single sign-on",
    "role_arn": "an assumed role",
    "credential_process": "a command (credential_process)",
    "login_session": "a login session",
}


def profile_options(given, environ=os.environ):
    """Options of obstore's S3Store that the profile adds to those `given`; what the environment says comes first.

    Raises StoreError: no such profile, or one whose keys come from elsewhere; unreadable INI files.
    """
    given = {key.lower().removeprefix("aws_") for key in given}
    name = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
    profile, services = _read(name, environ)
    if profile is None:
        if name == "default":
            return {}
        raise StoreError(f"AWS_PROFILE={name}: there is no such profile in {' or '.join(map(str, _paths(environ)))}")
    out = {}
    if not given & {"access_key_id", "secret_access_key", "skip_signature"} and not environ.get("AWS_ACCESS_KEY_ID"):
        out |= _keys(name, profile)
    if "region" in profile and not given & {"region", "default_region"}:
        if not environ.get("AWS_REGION") and not environ.get("AWS_DEFAULT_REGION"):
            out["region"] = profile["region"]
    endpoint = services or profile.get("endpoint_url")
    named = given & {"endpoint", "endpoint_url"} or any(environ.get(n) for n in ENDPOINTS)
    if endpoint and not named and environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        out["endpoint"] = endpoint
    return out


ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def _keys(name, profile):
    if "aws_access_key_id" in profile and "role_arn" not in profile:
        return {ours: profile[theirs] for theirs, ours in _KEYS.items() if theirs in profile}
    for key, what in _ELSEWHERE.items():
        if key in profile:
            raise StoreError(
                f"AWS profile {name}: its keys come from {what}, which is not done here; put keys into the environment first: "
                f'eval "$(aws configure export-credentials --profile {name} --format env)"'
            )
    return {}


def _paths(environ):
    """(credentials, config)"""
    home = Path(environ.get("HOME") or Path.home()) / ".aws"
    names = (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))
    return [Path(environ.get(variable) or home / default).expanduser() for variable, default in names]


def _read(name, environ):
    """(settings of a profile or None, S3's endpoint of the profile's services section)."""
    credentials, config = map(_parsed, _paths(environ))
    section = name if name == "default" else f"profile {name}"
    found = [parser[s] for parser, s in ((config, section), (credentials, name)) if parser.has_section(s)]
    if not found:
        return None, None
    profile = {key: value for part in found for key, value in part.items()}  # credentials over config
    services = f"services {profile.get('services', '')}"
    nested = config[services].get("s3", "") if config.has_section(services) else ""
    pairs = dict(line.replace(" ", "").split("=", 1) for line in nested.splitlines() if "=" in line)
    return profile, pairs.get("endpoint_url")


def _parsed(path):
    parser = configparser.RawConfigParser(default_section="\0", strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no INI file"
        raise StoreError(f"{path}: cannot be read ({reason}); mend it, or give --store_options") from None
    return parser
