"""Spellings of one recipient, and recipients that only look like one."""

EQUAL = {
    "case": ("Ada@Example.COM", "ada@example.com"),
    "a display name": ('"Ada, <x>" <ada@example.com>', "ada@example.com"),
    "white space": ("\t Ada <\u00a0ada@example.com >\r\n", "ada@example.com"),
    "an umlaut's case": ("ÄRGER@example.com", "ärger@example.com"),
    "composed and decomposed": ("a\u0308rger@example.com", "ärger@example.com"),
    "a Turkish capital": ("\u0130@example.com", "i\u0307@example.com"),
    "an international domain": ("Ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
    "a decomposed domain": ("ada@bu\u0308cher.example", "ada@XN--BCHER-KVA.example"),
    "a domain without a label": ("ada@\U0001f48c.example", "Ada@\U0001f48c.EXAMPLE"),
}

DIFFERENT = {
    "recipients": ("ada@example.com", "eve@example.com"),
    "domains": ("ada@bücher.example", "ada@bucher.example"),
    "accents": ("rené@example.com", "rene@example.com"),
    "a letter that only looks like one": ("\u212aate@example.com", "kate@example.com"),
    "a domain that only looks like one": ("ada@\u212aate.example", "ada@kate.example"),
    "a full stop that is none": ("ada@example\u3002com", "ada@example.com"),
    "wide letters": ("ada@\uff45xample.com", "ada@example.com"),
    "a dotless i": ("\u0131@example.com", "i@example.com"),
}
