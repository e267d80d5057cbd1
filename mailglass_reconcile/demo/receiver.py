"""The demo's receiver, a process of its own, and the two providers that post signed webhooks to it over HTTP."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import secrets
import signal
import sys
import urllib.request

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mailglass_reconcile.demo.scenario import Mail
from mailglass_reconcile.providers import samples, signatures
from mailglass_reconcile.providers.signatures import SignedRequest
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.testing.processes import ENDING_SIGNALS, Process
from mailglass_reconcile.testing.servers import free_port

HOST, TIMEOUT_SECONDS = "127.0.0.1", 10
START = "from mailglass_reconcile.demo import receiver; receiver.run_receiver({port})"


class ReceiverProcess(Process):
    """The receiver's process, and the keys with which its two providers sign, made for this run."""

    def __init__(self) -> None:
        super().__init__("the demo's receiver")
        self._key, self._login = ec.generate_private_key(ec.SECP256R1()), f"demo:{secrets.token_hex(16)}"
        self._port = free_port()

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        public = base64.b64encode(self._key.public_key().public_bytes(*form)).decode()
        environment = {**os.environ, "MAILGLASS_WEBHOOK_SECRETS": f"postmark={self._login},sendgrid={public}"}
        command = sys.executable, "-P", "-c", START.format(port=self._port)
        self.launch(*command, environment=environment)
        self.until(lambda: "serving on" in (self.directory / "log").read_text(errors="replace"))

    def post(self, mail: Mail, type_: str) -> None:
        """Post an event of *mail*'s provider to the path of its tenant."""
        now, name = dt.datetime.now(dt.UTC), provider_rules.canonical(mail.provider)
        sample = samples.make_sample(name, type_, mail.reported_id, None, now)
        if name == "postmark":
            body = json.dumps(sample | {"Tag": mail.name}).encode()
            signed = signatures.sign_basic(body, self._login, now.timestamp(), None)
        else:
            signed = self._sign(json.dumps([sample[0] | {"category": mail.name}]).encode(), now)
        url = f"http://{HOST}:{self._port}/{mail.tenant_id}/{name}"
        request = urllib.request.Request(url, signed.body, dict(signed.headers))
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310 - raises unless it is answered 2xx
            pass

    def _sign(self, body: bytes, now: dt.datetime) -> SignedRequest:
        """Return the request that SendGrid would send, signed with the key of this run."""
        at = str(int(now.timestamp()))
        signature = base64.b64encode(self._key.sign(at.encode() + body, ec.ECDSA(hashes.SHA256()))).decode()
        prefix = "X-Twilio-Email-Event-Webhook"
        return SignedRequest(body, {f"{prefix}-Signature": signature, f"{prefix}-Timestamp": at})


def run_receiver(port: int) -> None:
    """Run the receiver; the first part of the path is the tenant."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
    from mailglass_reconcile import server  # noqa: PLC0415 - its library is an extra
    from mailglass_reconcile.webhooks import webhook_app  # noqa: PLC0415 - only this process needs it

    server.run(webhook_app(tenant=lambda path: path.split("/")[1]), HOST, port)
