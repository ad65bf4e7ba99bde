"""http servers and buckets as they are met: without HEAD, busy, slow, behind passwords, with strange keys and certificates."""

import datetime
import http.server
import os
import socket
import ssl
import threading
import time

import pytest
from botocore.session import Session

from common import addresses
from common.errors import CannotList, Refused, ShardError, StoreError
from common.shard_set import find_beside, find_shards
from common.stores import open_store
from common.stores.connections import innermost, proxy_of
from common.stores.profiles import profile_options
from common.stores.retries import FIRST_ANSWER_S, Retry
from tests.common.test_stores import ALL, QUICK, made, names_of
from tests.faulty_server import FaultyServer

WAITS = Retry(attempts=1, pause_s=0.01, stall_s=1.0, minutes=1)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(range(256)) * 1000)
    server = FaultyServer(tmp_path)
    yield server
    server.close()


@pytest.mark.parametrize("status", [405, 501, 403, 400])
def test_a_server_without_head_is_asked_for_one_byte(server, status):
    server.head = status
    store = open_store(server.address, None, QUICK)
    assert store.stat("a.tar").size == 256_000 and store.exists("a.tar") and not store.exists("b.tar")
    assert [kind for kind, *_ in server.requests] == ["HEAD", "GET", "GET", "GET"]
    assert bytes(store.read_range("a.tar", 1, 3, store.stat("a.tar").etag)[0]) == b"\x01\x02\x03"


def test_what_is_missing_or_forbidden_stays_so_without_head(server):
    server.head, server.lasting = 403, "403"
    store = open_store(server.address, None, QUICK)
    with pytest.raises(Refused, match="a.tar: access is refused"):
        store.stat("a.tar")


def test_a_busy_server_is_asked_again_when_it_says(server):
    store = open_store(server.address, None, WAITS)
    store.stat("a.tar")
    server.faults[:] = ["busy", "busy"]  # one is met by the question when to come again
    started = time.monotonic()
    assert bytes(store.read_range("a.tar", 0, 2)[0]) == b"\x00\x01"
    assert 0.9 < time.monotonic() - started < 5 and not server.faults
    assert [kind for kind, *_ in server.requests] == ["HEAD", "GET", "GET", "GET"]


def test_an_outage_is_waited_for_once_something_was_read_and_not_before(server):
    store = open_store(server.address, None, WAITS)
    server.faults[:] = ["503"]
    with pytest.raises(StoreError, match="given up after 1 tries"):
        store.read("a.tar")
    whole = store.read("a.tar")
    for fault in ("503", "reset", "half", "stall"):
        server.faults[:] = [fault] * 2
        assert store.read("a.tar") == whole, fault
        server.faults[:] = [fault] * 2
        assert b"".join(store.chunks("a.tar")) == whole, fault
    server.lasting = "404"  # no outage
    with pytest.raises(StoreError, match="is not there"):
        store.read("a.tar")


@pytest.mark.parametrize("form", ["read", "chunks", "read_range"])
def test_a_trickle_is_no_progress(server, form):
    store = open_store(server.address, None, Retry(attempts=1, stall_s=1.0, minutes=0))
    store.stat("a.tar")
    server.lasting = "trickle"
    call = {
        "read": lambda: store.read("a.tar"),
        "chunks": lambda: b"".join(store.chunks("a.tar")),
        "read_range": lambda: store.read_range("a.tar", 0, 1000),
    }[form]
    started = time.monotonic()
    with pytest.raises(StoreError, match="given up after 1 tries"):
        call()
    assert time.monotonic() - started < 15


def test_a_server_that_accepts_and_says_nothing_is_given_up_within_half_a_minute():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = open_store(f"http://127.0.0.1:{silent.getsockname()[1]}", None, Retry(attempts=1))
        started = time.monotonic()
        with pytest.raises(StoreError, match="no answer in time"):
            store.stat("a.tar")
        assert time.monotonic() - started < FIRST_ANSWER_S


def test_user_and_password_are_sent_as_a_header_and_never_shown_or_recorded(server):
    server.authorization = "Basic bWU6cEBzcy93b3Jk"  # me:p@ss/word
    address = f"{server.address.replace('://', '://me:p%40ss%2Fword@')}/a.tar"
    folder, name = addresses.split(address)
    store = open_store(folder, None, QUICK)
    assert store.stat(name).size == 256_000
    assert not any("@" in path or "p%40" in path for _, path, _ in server.requests)
    texts = [repr(store), store.path(name), addresses.shown(address), addresses.recordable(address)]
    server.lasting = "reset"
    with pytest.raises(StoreError) as caught:
        store.read(name)
    texts.append(str(caught.value))
    with pytest.raises(Refused, match="the password, which are never recorded") as caught:
        open_store(folder.replace("word", "other"), None, QUICK).stat(name)
    texts.append(str(caught.value))
    for text in texts:
        assert not any(secret in text for secret in ("me:", "p%40", "p@ss", "word@", "bWU6"))
    assert addresses.recordable("https://token@host/a.tar") == "https://host/a.tar"
    assert addresses.recordable("ssh://me@host/a") == "ssh://me@host/a"
    assert addresses.recordable("ssh://me:word@host/a") == "ssh://host/a"
    assert addresses.shown("abfs://box@account.dfs.core.windows.net/a").startswith("abfs://box@account")


@pytest.fixture
def certificate(tmp_path):
    """Path of a key and a certificate of localhost that nobody has issued."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, day = ec.generate_private_key(ec.SECP256R1()), datetime.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - day).not_valid_after(now + day)
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "pair.pem"
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem) + private)
    return path


def test_why_there_is_no_connection(certificate, monkeypatch):
    """The innermost cause in the line, and a certificate that nobody knows is not tried again."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    httpd.handle_error = lambda *_: None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    port = httpd.server_address[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]

    def why(address):
        with pytest.raises(StoreError) as caught:
            open_store(address, None, QUICK).stat("a.tar")
        return str(caught.value)

    try:
        assert "its certificate is not accepted: nobody known has issued it" in (
            text := why(f"https://localhost:{port}")
        )
        assert "tries" not in text
        trusting = {"client_options": {"allow_invalid_certificates": True}}
        with pytest.raises(StoreError, match="is not there"):
            open_store(f"https://localhost:{port}", trusting, QUICK).stat("a.tar")
    finally:
        httpd.shutdown()
        httpd.server_close()
    assert "connection refused" in why(f"http://127.0.0.1:{closed}")
    assert "no such host" in why("http://nosuch.invalid")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://user:hush-hush@127.0.0.1:{closed}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    text = why("http://nosuch.invalid")
    assert "connection refused (through the proxy that HTTP_PROXY names)" in text and "hush" not in text


def test_the_innermost_cause_of_texts_of_other_clients():
    assert innermost('Http { error: "x", source: Custom { message: "Software caused connection abort" } }').endswith(
        "abort"
    )
    assert innermost("nothing to see") == "" and proxy_of("") == ""


def test_keys_with_empty_parts_and_brackets_are_read(s3, tmp_path):
    """boto writes them as the AWS command line does; what cannot be listed is found through the manifest or by name."""
    client = Session().create_client("s3", endpoint_url=s3.endpoint)
    local = made(tmp_path / "out", listed=3)
    (local / "train-000.tar").write_bytes(b"0123456789")
    for folder in ("odd//deep/", "odd/end//", "[a]/b [x]/"):
        for path in local.iterdir():
            client.put_object(Bucket=s3.bucket, Key=folder + path.name, Body=path.read_bytes())
    for folder in ("odd//deep", "odd//deep/", "odd/end//", "[a]/b [x]", "[a]/b [x]/"):
        at = f"s3://{s3.bucket}/{folder}"
        for form in ("", *(f"{'' if at.endswith('/') else '/'}{n}" for n in ("train-*.tar", "train-<000..099>.tar"))):
            shards = find_shards(at + form, "train", retry=QUICK)
            assert names_of(shards) == ALL and not shards.notes, (folder, form)
            folder_of, name = addresses.split(shards.shards[0])
            assert bytes(open_store(folder_of, None, QUICK).read_range(name, 2, 3)[0]) == b"234"
        assert names_of(find_beside(shards, "val")) == ["val-000.tar"]
    at = f"s3://{s3.bucket}"
    assert names_of(find_shards(f"{at}/[[]a]/b*/train-*.tar", "train", retry=QUICK)) == ALL
    store = open_store(f"{at}/odd//new", None, QUICK)
    store.write("one", b"1")
    assert client.get_object(Bucket=s3.bucket, Key="odd//new/one")["Body"].read() == b"1"
    for folder in ("odd//deep", "odd"):  # obstore lists neither a name with // nor what holds one
        with pytest.raises(CannotList, match="name the shards or their manifest"):
            open_store(f"{at}/{folder}", None, QUICK).list()


def test_brackets_and_empty_parts_over_http(tmp_path):
    made(tmp_path / "a [x]" / "b", listed=3)
    server = FaultyServer(tmp_path)
    try:
        for form in ("/", "", "/train-*.tar", "/train-00[0-2].tar", "/train.manifest.json"):
            assert names_of(find_shards(f"{server.address}/a [x]//b{form}", "train", retry=QUICK)) == ALL
        (tmp_path / "t[0].tar").write_bytes(b"x")
        assert names_of(find_shards(f"{server.address}/t[0].tar", retry=QUICK)) == ["t[0].tar"]
    finally:
        server.close()


def test_a_folder_s_slash_means_nothing_and_further_ones_are_its_name():
    for folder in ("s3://b", "s3://b/a", "s3://b//", "s3://b/a//", "s3://b//a///", "http://h/a//", "http://h:1"):
        file = addresses.join(folder, "n.tar")
        assert addresses.split(file) == (folder, "n.tar")
    assert addresses.join("s3://b/a/", "n") == addresses.join("s3://b/a", "n") == "s3://b/a/n"
    assert addresses.join("/a//", "n") == "/a/n" and addresses.join("", "n") == "n"


def test_a_bucket_that_is_not_there_is_named_as_that(s3):
    for form in ("", "/a/", "/a/train-*.tar", "/a/train-<0..9>.tar", "/train.manifest.json"):
        with pytest.raises(StoreError, match="there is no such bucket"):
            find_shards(f"s3://nosuchbucket{form}", retry=QUICK)


@pytest.fixture
def unlisted(s3, tmp_path):
    """(address, options) of a folder whose store refuses, as S3 does, what is not there to whoever may not list."""
    made(tmp_path / "bucket" / "out", listed=3)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self):
            path = tmp_path / self.path.partition("?")[0].lstrip("/")
            if path.is_file():
                return super().send_head()
            self.send_error(403)

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield (
        "s3://bucket/out",
        {"endpoint": f"http://127.0.0.1:{httpd.server_address[1]}", "skip_signature": True},
        tmp_path,
    )
    httpd.shutdown()
    httpd.server_close()


def test_without_the_right_to_list_what_is_refused_is_taken_for_missing_where_that_may_be(unlisted):
    at, options, folder = unlisted
    (folder / "bucket/out/val.manifest.json").unlink()
    for form in ("/", "/train-*.tar", "/train-<000..099>.tar", "/train.manifest.json"):
        shards = find_shards(at + form, "train", options, QUICK)
        assert names_of(shards) == ALL
        assert not find_beside(shards, "val")
    (folder / "bucket/out/train.manifest.json").unlink()
    assert names_of(find_shards(f"{at}/train-<000..099>.tar", "train", options, QUICK)) == ALL
    for form in ("/", "/train-*.tar", "/val-1<00..99>.tar"):
        with pytest.raises(StoreError, match="access is refused"):
            find_shards(at + form, "train", options, QUICK)


PROFILES = {
    "credentials": "[default]\naws_access_key_id = AK\naws_secret_access_key = SK\n[tok]\naws_access_key_id=A\n"
    "aws_secret_access_key=S\naws_session_token=T\n",
    "config": "[default]\nregion = eu-central-1\n[profile tok]\nregion=eu-north-1\nendpoint_url = http://minio:9000\n"
    "[profile lab]\nservices = lab\naws_access_key_id=L\naws_secret_access_key=M\n[services lab]\ns3 =\n"
    "  endpoint_url = http://lab:1\n[profile sso]\nsso_session = x\n[profile role]\nrole_arn = arn:x\n"
    "source_profile = default\n[profile run]\ncredential_process = /bin/x\n[profile bare]\nregion = us-west-2\n",
}


def test_aws_profiles_are_read(tmp_path):
    (tmp_path / ".aws").mkdir()
    for name, text in PROFILES.items():
        (tmp_path / ".aws" / name).write_text(text)
    home = {"HOME": str(tmp_path)}

    def of(profile, given=(), **more):
        return profile_options(given, home | ({"AWS_PROFILE": profile} if profile else {}) | more)

    keys = {"access_key_id": "AK", "secret_access_key": "SK"}
    assert of("") == keys | {"region": "eu-central-1"}
    assert of("", AWS_REGION="x", AWS_ACCESS_KEY_ID="y") == {}
    assert of("", ["aws_region", "secret_access_key"]) == {}
    token = {"access_key_id": "A", "secret_access_key": "S", "session_token": "T", "region": "eu-north-1"}
    assert of("tok") == token | {"endpoint": "http://minio:9000"}
    assert of("tok", AWS_ENDPOINT_URL_S3="http://x") == token
    assert of("lab") == {"access_key_id": "L", "secret_access_key": "M", "endpoint": "http://lab:1"}
    assert of("bare") == {"region": "us-west-2"}
    for profile, what in (("sso", "single sign-on"), ("role", "an assumed role"), ("run", "a command")):
        with pytest.raises(StoreError, match=f"AWS profile {profile}: its keys come from {what}"):
            of(profile)
        assert of(profile, AWS_ACCESS_KEY_ID="y") == {} == of(profile, ["skip_signature"])
    with pytest.raises(StoreError, match="AWS_PROFILE=none: there is no such profile in .*credentials or .*config"):
        of("none")
    assert profile_options((), {"HOME": str(tmp_path / "nowhere")}) == {}
    (tmp_path / "broken").write_text("no section")
    with pytest.raises(StoreError, match="broken: cannot be read"):
        of("", AWS_CONFIG_FILE=str(tmp_path / "broken"))


def test_a_profile_opens_a_bucket(s3, tmp_path, monkeypatch):
    open_store(f"s3://{s3.bucket}/profile").write("one", b"1")
    (tmp_path / "config").write_text(
        f"[profile here]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\naws_access_key_id = testing\n"
        "aws_secret_access_key = testing\n"
    )
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "here")
    assert open_store(f"s3://{s3.bucket}/profile", None, QUICK).read("one") == b"1"


@pytest.mark.parametrize("count, gone, said", [(3, (), ""), (5, (1, 3), "; by their numbers 2 are missing (1, 3)")])
def test_shards_without_their_manifest_say_so(tmp_path, count, gone, said):
    folder = made(tmp_path / "out", train=count)
    for number in gone:
        (folder / f"train-{number:03d}.tar").unlink()
    [note] = find_shards(f"{folder}/train-*.tar").notes
    assert note.startswith(f"{folder}/train.manifest.json: there is no such manifest") and f"of the set{said};" in note


def test_over_a_thousand_shards_are_in_one_order_whatever_names_them(tmp_path):
    from common.manifest import Manifest, ManifestShard, dump_manifest

    names = [f"train-{number:03d}.tar" for number in range(1005)]
    for name in names:
        (tmp_path / name).touch()
    forms = ["", "train-*.tar", "train-<000..1100>.tar"]
    assert all(names_of(find_shards(f"{tmp_path}/{form}", "train")) == names for form in forms)
    entries = tuple(ManifestShard(name, 1, ["x"], 0, "0" * 64) for name in names)
    (tmp_path / "train.manifest.json").write_bytes(dump_manifest(Manifest("train", "v", entries)))
    forms.append("train.manifest.json")
    assert all(names_of(find_shards(f"{tmp_path}/{form}", "train")) == names for form in forms)
    with pytest.raises(ShardError):
        find_shards(f"{tmp_path}/train-<1200..1300>.tar")
