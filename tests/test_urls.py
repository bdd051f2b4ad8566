"""Pictures by URL, as curl and browsers fetch them: headers, redirects, encodings, addresses, time."""

import base64
import dataclasses
import gzip
import http.server
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
import zlib

import numpy as np
import pytest
from conftest import image_bytes, web_server, write_certificate

import routines

PICTURE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
LIMITS = routines.ImageLimits()
ALLOWED = routines.ImageLimits(
    allowed_hosts=("127.0.0.1", "localhost", "pictures.example"),
    max_bytes=1_000_000,
    download_seconds=2,
)


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw": raw_deflate,
    "identity": bytes,
}


class Web(http.server.BaseHTTPRequestHandler):
    """Answers pictures, packed and not, redirects to /<status>?<Location>, and keeps what was asked."""

    asked: list = []

    def do_GET(self):
        self.asked.append((self.path, dict(self.headers)))
        path, _, query = self.path.partition("?")
        kind = path.strip("/")
        if kind.isdigit():
            self.send_response(int(kind))
            if query:
                self.send_header("Location", query.replace("_", " "))
            self.end_headers()
            return
        body = PACKED.get(kind, bytes)(image_bytes(PICTURE))
        if kind == "bomb":
            body = gzip.compress(bytes(50_000_000))
        if kind == "cut":
            body = gzip.compress(image_bytes(PICTURE))[:-9]
        self.send_response(200)
        encoding = {"raw": "deflate", "bomb": "gzip", "cut": "gzip", "br": "br"}.get(kind, kind)
        if kind in PACKED or kind in ("bomb", "cut", "br"):
            self.send_header("Content-Encoding", encoding.upper())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def port():
    with web_server(Web) as port:
        yield port


def at(address="127.0.0.1"):
    return lambda host, port, type=0: [(socket.AF_INET, type, 6, "", (address, port))]


def asked_of(url, resolve=socket.getaddrinfo):
    """What the server was asked for at the end, after the picture has come."""
    Web.asked.clear()
    assert (routines.fetch_image(url, ALLOWED, resolve) == PICTURE).all()
    return Web.asked[-1]


@pytest.mark.parametrize(
    "path",
    ["", "/a/../b/./c?q=%20é&x", "?a=b#f", "/x//y", "/a/..", "/%7Ea/ü", "/a?redirect=/../x#frag"],
)
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "LocalHost", "u:p%40x:y@localhost", "user@localhost"]
)
def test_requests_are_written_as_curl_writes_them(port, host, path):
    url = f"http://{host}:{port}{path}"
    ours = asked_of(url)
    subprocess.run(["curl", "-gso", "/dev/null", url], check=True, timeout=60)
    theirs = Web.asked[-1]
    escaped = routines.escape_target(
        theirs[0].encode("latin-1").decode()
    )  # curl sends UTF-8 as it is
    assert ours[0].lower() == escaped.lower()
    for name in ("Host", "Authorization"):
        assert ours[1].get(name) == theirs[1].get(name), name


@pytest.mark.parametrize(
    "url, header",
    [
        ("http://a.example/", "a.example"),
        ("http://a.example:80/", "a.example"),
        ("https://a.example:443/", "a.example"),
        ("https://a.example:80/", "a.example:80"),
        ("http://a.example:443/", "a.example:443"),
        ("http://Bucket.S3.example:8080/", "Bucket.S3.example:8080"),
        ("http://[2001:DB8::1]:80/", "[2001:DB8::1]"),
        ("http://[::1]:8080/", "[::1]:8080"),
        ("http://u:p@münchen.example:/", "xn--mnchen-3ya.example"),
    ],
)
def test_the_host_header_has_the_port_where_it_is_not_the_schemes(url, header):
    assert routines.read_url(url).host_header == header


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location, path",
    [
        ("/b", "/b"),
        ("b?c=d", "/b?c=d"),
        ("//127.0.0.1:{}/b", "/b"),
        ("http://LOCALHOST:{}/b#part", "/b"),
        ("HTTP://127.0.0.1:{}/a/../b", "/b"),
        ("/with_space", "/with%20space"),
        ("../../b", "/b"),
        ("?x=1", "/x=1"),  # by way of /<status>?x=1
    ],
)
def test_redirects_in_every_spelling(port, status, location, path):
    location = location.replace("{}", str(port))
    assert asked_of(f"http://127.0.0.1:{port}/{status}?{location}")[0] == path


def test_a_redirect_without_a_place_is_no_picture(port):
    for status in (302, 304):
        with pytest.raises(routines.ImageError, match=f"url answers {status}"):
            routines.fetch_image(f"http://127.0.0.1:{port}/{status}", ALLOWED)


def test_a_login_stays_with_its_host(port):
    login = "Basic " + base64.b64encode(b"u:p@").decode()
    same, other = "/302?/b", f"/302?http://localhost:{port}/b"
    assert asked_of(f"http://u:p%40@127.0.0.1:{port}{same}")[1]["Authorization"] == login
    assert "Authorization" not in asked_of(f"http://u:p%40@127.0.0.1:{port}{other}")[1]
    to_login = f"/302?http://u:p%40@localhost:{port}/b"
    assert asked_of(f"http://127.0.0.1:{port}{to_login}")[1]["Authorization"] == login


@pytest.mark.parametrize("kind", PACKED)
def test_packed_answers_are_unpacked(port, kind):
    assert "gzip" in asked_of(f"http://127.0.0.1:{port}/{kind}")[1]["Accept-Encoding"]


@pytest.mark.parametrize(
    "kind, text, too_large",
    [
        ("bomb", "url answers more than the limit of 1000000 bytes", True),
        ("cut", "url answers damaged gzip: it ends too early", False),
        ("br", "url answers in an encoding that is not known: 'br'", False),
    ],
)
def test_packed_answers_are_bounded_and_whole(port, kind, text, too_large):
    taken = []
    limits = dataclasses.replace(ALLOWED, allow=taken.append)
    with pytest.raises(routines.ImageError, match=text) as raised:
        routines.fetch_image(f"http://127.0.0.1:{port}/{kind}", limits)
    assert raised.value.too_large == too_large and sum(taken) <= 3_000_000


def test_every_address_of_a_host_is_tried(port):
    with socket.socket() as closed:
        closed.bind(("127.0.0.2", 0))  # listens to nobody
        dead = ("127.0.0.2", port)
        entries = [
            (socket.AF_INET, 1, 6, "", address)
            for address in (dead, dead, ("127.0.0.3", port), ("127.0.0.1", port))
        ]
        path, headers = asked_of(f"http://pictures.example:{port}/x", lambda *a, **k: entries)
        assert headers["Host"] == f"pictures.example:{port}"
        with pytest.raises(routines.ImageError, match="url cannot be read: Connection refused"):
            routines.fetch_image(
                f"http://pictures.example:{port}/", ALLOWED, lambda *a, **k: entries[:3]
            )


@pytest.mark.parametrize(
    "allowed, is_there",
    [
        ("Pictures.EXAMPLE", True),
        ("pictures.example:{}", True),
        ("PICTURES.example:{}", True),
        ("pictures.example:1", False),
        ("127.0.0.1", False),
        ("example", False),
    ],
)
def test_hosts_are_allowed_by_name_or_by_name_and_port(port, allowed, is_there):
    limits = routines.ImageLimits(allowed_hosts=(allowed.replace("{}", str(port)),))
    for host in ("pictures.example", "PICTURES.Example", "pictures.example."):
        if is_there:
            found = routines.fetch_image(f"http://{host}:{port}/", limits, at())
            assert (found == PICTURE).all()
        else:
            with pytest.raises(routines.ImageError, match="is not a public address"):
                routines.fetch_image(f"http://{host}:{port}/", limits, at())


def test_ipv6_hosts_are_allowed_in_brackets_and_without():
    for allowed in ("::1", "[::1]", "[::1]:8080"):
        assert routines.is_allowed(routines.read_url("http://[::1]:8080/"), (allowed,))
    assert not routines.is_allowed(routines.read_url("http://[::1]:81/"), ("[::1]:8080",))


# The registries: https://www.iana.org/assignments/iana-ipv4-special-registry, -ipv6-special-registry.
SPECIAL = """0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24
192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
240.0.0.0/4 255.255.255.255/32 224.0.0.0/4
::1/128 ::/128 ::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28
2001:db8::/32 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 4000::/3"""
PUBLIC = "1.1.1.1 93.184.216.34 100.63.255.255 100.128.0.0 172.32.0.1 198.17.0.1 198.20.0.1 223.255.255.255 192.0.1.1"
PUBLIC6 = (
    "2606:4700::1111 2a00:1450:4001::1 2001:200::1 2001:4860:4860::8888 3ffe::1 2620:4f:8001::1"
)


@pytest.mark.parametrize("network", SPECIAL.split())
def test_no_address_of_the_special_registries_is_public(network):
    network = ipaddress.ip_network(network)
    for address in (network[0], network[-1], network[network.num_addresses // 2]):
        assert not routines.is_public(str(address))


def test_public_addresses_are_public_and_what_carries_one_is_as_that_is():
    for text in [*PUBLIC.split(), *PUBLIC6.split()]:
        assert routines.is_public(text)
    for text, public in (("8.8.8.8", True), ("10.0.0.1", False), ("100.64.0.1", False)):
        number = int(ipaddress.IPv4Address(text))
        for start in (0x64FF9B << 96, 0xFFFF << 32):
            assert routines.is_public(str(ipaddress.IPv6Address(start + number))) == public
        assert (
            routines.is_public(str(ipaddress.IPv6Address((0x2002 << 112) + (number << 80))))
            == public
        )
    assert not routines.is_public("fe80::1%eth0") and not routines.is_public("no address")


def test_a_resolver_that_hangs_ends_in_time():
    held = threading.Event()
    limits = dataclasses.replace(LIMITS, download_seconds=0.2)
    start = time.monotonic()
    with pytest.raises(routines.ImageError, match="url cannot be read: took longer than 0.2 s"):
        routines.fetch_image("http://a.example/", limits, lambda *a, **k: held.wait())
    assert time.monotonic() - start < 30
    held.set()


def test_names_that_no_resolver_takes():
    def fail(*arguments, **options):
        raise UnicodeError("label too long")

    for resolve in (fail, lambda *a, **k: []):
        with pytest.raises(routines.ImageError, match="is not known|has no address"):
            routines.fetch_image("http://a.example/", LIMITS, resolve)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,{}",
        "DATA:image/png;charset=x;BASE64,{}",
        "data:;base64,{}",
        " data:;base64,{}\n",
        "data:image/png;base64,{percent}",
        "data:image/png,{escaped}",
    ],
)
def test_data_urls_hold_their_picture(url):
    data = base64.b64encode(image_bytes(PICTURE)).decode()
    url = (
        url.replace("{}", data)
        .replace("{percent}", data.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"))
        .replace("{escaped}", "".join(f"%{byte:02x}" for byte in image_bytes(PICTURE)))
    )
    assert (routines.fetch_image(url, LIMITS) == PICTURE).all()


def test_wrong_data_urls_and_data_behind_a_redirect(port):
    for url, text in (
        ("data:image/png;base64", "expected a comma"),
        ("data:image/png;base64,!!", "data is not base64"),
        ("data:,x", "not an image"),
        (f"http://127.0.0.1:{port}/302?data:image/png;base64,eHg=", "expected http"),
        (f"http://127.0.0.1:{port}/302?http://127.0.0.2:{port}/", "127.0.0.2' is not a public"),
        (f"http://pictures.example\\@127.0.0.2:{port}/", "not a public|expected http|malformed"),
        (f"http://127.0.0.1%00.example:{port}/", "expected http"),
    ):
        with pytest.raises(routines.ImageError, match=text):
            routines.fetch_image(url, ALLOWED)


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A web server under TLS for pictures.example, and its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    write_certificate(folder, "pictures.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with web_server(Web, context) as port:
        yield port, folder / "cert.pem"


def test_the_certificate_is_to_be_of_the_host_that_was_named(tls, monkeypatch):
    port, certificate = tls
    with pytest.raises(routines.ImageError, match="url cannot be read"):
        routines.fetch_image(f"https://pictures.example:{port}/", ALLOWED, at())
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for host in ("pictures.example", "Pictures.Example", "pictures.example."):
        found = routines.fetch_image(f"https://{host}:{port}/", ALLOWED, at())
        assert (found == PICTURE).all()
    with pytest.raises(routines.ImageError, match="url cannot be read"):
        routines.fetch_image(f"https://localhost:{port}/", ALLOWED, at())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_drips_is_cut_at_the_deadline(scheme):
    """Within a handshake of TLS as well: each read alone would be in time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            link, _ = listener.accept()
            head = b"\x16\x03\x03\x40\x00" if scheme == "https" else b"HTTP/1.1 200 OK\r\nA: "
            try:
                link.sendall(head)
                while True:
                    link.sendall(b"x")
                    time.sleep(0.05)
            except OSError:
                link.close()

        threading.Thread(target=drip, daemon=True).start()
        limits, start = dataclasses.replace(ALLOWED, download_seconds=0.5), time.monotonic()
        with pytest.raises(routines.ImageError, match="took longer than 0.5 s"):
            routines.fetch_image(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/", limits)
        assert time.monotonic() - start < 30


# --- several at once ------------------------------------------------------------------------------


class Meeting(http.server.BaseHTTPRequestHandler):
    """Answers a picture when four are asked for at once; /<status> at once; /drip never whole."""

    together = threading.Barrier(4)
    most = threading.Lock()
    asked = open_now = highest = 0

    def do_GET(self):
        name = self.path.strip("/")
        with self.most:
            Meeting.asked += 1
            Meeting.open_now += 1
            Meeting.highest = max(Meeting.highest, Meeting.open_now)
        try:
            if not name.isdigit() and name != "drip":
                self.together.wait(60)
            self.send_response(int(name) if name.isdigit() else 200)
            self.end_headers()
            if name == "drip":
                while True:
                    self.wfile.write(b"x" * 100)
                    time.sleep(0.02)
            self.wfile.write(image_bytes(PICTURE))
        except OSError:
            pass
        finally:
            with self.most:
                Meeting.open_now -= 1

    log_message = Web.log_message


@pytest.fixture(scope="module")
def meeting():
    with web_server(Meeting) as port:
        yield f"http://127.0.0.1:{port}"


def ask_for(urls, **limits):
    given = dataclasses.replace(ALLOWED, **{"download_seconds": 60, **limits})
    return routines.read_request({"image_type": "url", "data": urls}, given)[0]


def test_four_pictures_of_a_request_are_fetched_at_once_in_their_order(meeting):
    """The server answers none before it is asked for four."""
    Meeting.highest, taken = 0, []
    urls = [f"{meeting}/a{number}" for number in range(8)]
    found = ask_for(urls, allow=taken.append)
    assert len(found) == 8 and all((picture == PICTURE).all() for picture in found)
    assert Meeting.highest == 4
    assert sum(taken) >= 8 * (PICTURE.nbytes + len(image_bytes(PICTURE)))  # all of it counts


def test_of_several_that_fail_the_first_is_told_and_no_further_ones_are_fetched(meeting):
    Meeting.asked = 0
    urls = [f"{meeting}/200", f"{meeting}/404", *[f"{meeting}/drip"] * 9]
    with pytest.raises(routines.ImageError, match=r"data\[1\]: url answers 404"):
        ask_for(urls, download_seconds=1)
    assert Meeting.asked <= 6 and not [
        one for one in threading.enumerate() if one.name.startswith("download")
    ]


def test_the_time_is_that_of_all_pictures_and_each_address_is_checked(meeting):
    urls = [f"{meeting}/drip"] * 6
    with pytest.raises(routines.ImageError, match=r"data\[0\]: url cannot be read: took"):
        ask_for(urls, download_seconds=0.5)
    with pytest.raises(routines.ImageError, match=r"data\[2\]: url: host '10.0.0.1' is not a pu"):
        ask_for([f"{meeting}/200", f"{meeting}/200", "http://10.0.0.1/"])

    def refuse(size):
        raise OverflowError

    with pytest.raises(OverflowError):
        ask_for([f"{meeting}/drip"] * 3, allow=refuse)
