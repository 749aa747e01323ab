"""The agent card of A2A 1.0: what an agent is called, what it can do, and what it asks of its callers.

Source: `a2a.proto` of the A2A specification 1.0. The rules of `xnai.protocol.a2a` hold here too. What the
specification marks REQUIRED is required here, and such an array may not be empty.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from msgspec import NODEFAULT, field, structs

from xnai.protocol.a2a import A2AObject, Flag, Many

V = TypeVar("V")

if TYPE_CHECKING:
    Named: TypeAlias = dict[str, V]
else:  # as with Many: null passes the decoder and becomes the default
    Named = dict[str, V] | None


class CardObject(A2AObject, frozen=True):
    """What the parts of a card share: null stands for the default of an array, a map or a flag.

    Raises:
        ValueError: a required array is empty.
    """

    def __post_init__(self) -> None:
        for member in _members(type(self)):
            value = getattr(self, member.name)
            if member.required and value == ():
                raise ValueError(f"{type(self).__name__}: {member.encode_name!r} may not be empty")
            if value is None and not member.required and member.default is not None:
                empty = member.default if member.default_factory is NODEFAULT else member.default_factory()
                structs.force_setattr(self, member.name, empty)


@lru_cache
def _members(kind: type[CardObject]) -> tuple[structs.FieldInfo, ...]:
    """The fields of a class: looking them up costs a hundred times what comparing them does."""
    return structs.fields(kind)


def _exactly_one(of: CardObject) -> None:
    given = [name for name in of.__struct_fields__ if getattr(of, name) is not None]
    if len(given) != 1:
        raise ValueError(f"{type(of).__name__} holds exactly one of {', '.join(of.__struct_encode_fields__)}")


def _no_scopes() -> dict[str, str]:
    """An empty map that is written all the same: msgspec leaves one out only where `dict` itself makes it.

    `scopes` is REQUIRED, yet ProtoJSON writers leave an empty map out, so a reader has to do without it.
    """
    return {}


class AgentExtension(CardObject, frozen=True, kw_only=True):
    """An extension of A2A that the agent knows; `required` ones its callers have to know too."""

    uri: str | None = None
    description: str | None = None
    required: Flag = False
    params: dict[str, Any] | None = None


class AgentCapabilities(CardObject, frozen=True, kw_only=True):
    """What of A2A the agent offers. None says nothing, which is not the same as False."""

    streaming: bool | None = None
    push_notifications: bool | None = None
    extensions: Many[AgentExtension] = ()
    extended_agent_card: bool | None = None


class AgentInterface(CardObject, frozen=True, kw_only=True):
    """One way to reach the agent: an address, and what is spoken there.

    `protocol_binding` is JSONRPC, GRPC, HTTP+JSON, or the URI of another binding.
    """

    url: str
    protocol_binding: str
    tenant: str | None = None
    protocol_version: str


class AgentProvider(CardObject, frozen=True, kw_only=True):
    """Who runs the agent."""

    url: str
    organization: str


class StringList(CardObject, frozen=True, kw_only=True):
    """The scopes that a security requirement names."""

    list: Many[str] = ()


class SecurityRequirement(CardObject, frozen=True, kw_only=True):
    """Schemes that are all needed together, by their name in the card. Requirements are alternatives."""

    schemes: Named[StringList] = field(default_factory=dict)


class AgentSkill(CardObject, frozen=True, kw_only=True):
    """One thing that the agent can do, described for people and models."""

    id: str
    name: str
    description: str
    tags: tuple[str, ...]
    examples: Many[str] = ()
    input_modes: Many[str] = ()
    output_modes: Many[str] = ()
    security_requirements: Many[SecurityRequirement] = ()


class AuthorizationCodeOAuthFlow(CardObject, frozen=True, kw_only=True):
    """OAuth 2.0 authorization code, for a person behind a browser. `scopes` maps each to its description."""

    authorization_url: str
    token_url: str
    refresh_url: str | None = None
    scopes: Named[str] = field(default_factory=_no_scopes)
    pkce_required: Flag = False


class ClientCredentialsOAuthFlow(CardObject, frozen=True, kw_only=True):
    """OAuth 2.0 client credentials, for a program on its own behalf."""

    token_url: str
    refresh_url: str | None = None
    scopes: Named[str] = field(default_factory=_no_scopes)


class ImplicitOAuthFlow(CardObject, frozen=True, kw_only=True):
    """OAuth 2.0 implicit grant, deprecated by the specification."""

    authorization_url: str | None = None
    refresh_url: str | None = None
    scopes: Named[str] = field(default_factory=dict)


class PasswordOAuthFlow(CardObject, frozen=True, kw_only=True):
    """OAuth 2.0 password grant, deprecated by the specification."""

    token_url: str | None = None
    refresh_url: str | None = None
    scopes: Named[str] = field(default_factory=dict)


class DeviceCodeOAuthFlow(CardObject, frozen=True, kw_only=True):
    """OAuth 2.0 device code (RFC 8628), for a program without a browser."""

    device_authorization_url: str
    token_url: str
    refresh_url: str | None = None
    scopes: Named[str] = field(default_factory=_no_scopes)


class OAuthFlows(CardObject, frozen=True, kw_only=True):
    """How a token is obtained: exactly one of the five.

    Raises:
        ValueError: none is given, or more than one.
    """

    authorization_code: AuthorizationCodeOAuthFlow | None = None
    client_credentials: ClientCredentialsOAuthFlow | None = None
    implicit: ImplicitOAuthFlow | None = None
    password: PasswordOAuthFlow | None = None
    device_code: DeviceCodeOAuthFlow | None = None

    def __post_init__(self) -> None:
        _exactly_one(self)


class APIKeySecurityScheme(CardObject, frozen=True, kw_only=True):
    """A key in the `query`, a `header` or a `cookie` of that name."""

    description: str | None = None
    location: str
    name: str


class HTTPAuthSecurityScheme(CardObject, frozen=True, kw_only=True):
    """The HTTP `Authorization` header with a registered scheme, such as Bearer (RFC 9110)."""

    description: str | None = None
    scheme: str
    bearer_format: str | None = None


class OAuth2SecurityScheme(CardObject, frozen=True, kw_only=True):
    """OAuth 2.0; `oauth2_metadata_url` is the metadata document of the server (RFC 8414)."""

    description: str | None = None
    flows: OAuthFlows
    oauth2_metadata_url: str | None = None


class OpenIdConnectSecurityScheme(CardObject, frozen=True, kw_only=True):
    """OpenID Connect, found through its discovery document."""

    description: str | None = None
    open_id_connect_url: str


class MutualTlsSecurityScheme(CardObject, frozen=True, kw_only=True):
    """A client certificate."""

    description: str | None = None


class SecurityScheme(CardObject, frozen=True, kw_only=True):
    """How callers prove who they are: exactly one of the five.

    Raises:
        ValueError: none is given, or more than one.
    """

    api_key_security_scheme: APIKeySecurityScheme | None = None
    http_auth_security_scheme: HTTPAuthSecurityScheme | None = None
    oauth2_security_scheme: OAuth2SecurityScheme | None = None
    open_id_connect_security_scheme: OpenIdConnectSecurityScheme | None = None
    mtls_security_scheme: MutualTlsSecurityScheme | None = None

    def __post_init__(self) -> None:
        _exactly_one(self)


class AgentCardSignature(CardObject, frozen=True, kw_only=True):
    """A JSON Web Signature (RFC 7515) over the card without its signatures, in canonical form (RFC 8785)."""

    protected: str
    signature: str
    header: dict[str, Any] | None = None


class AgentCard(CardObject, frozen=True, kw_only=True):
    """The description that an agent publishes of itself. The first interface is the preferred one."""

    name: str
    description: str
    supported_interfaces: tuple[AgentInterface, ...]
    provider: AgentProvider | None = None
    version: str
    documentation_url: str | None = None
    capabilities: AgentCapabilities
    security_schemes: Named[SecurityScheme] = field(default_factory=dict)
    security_requirements: Many[SecurityRequirement] = ()
    default_input_modes: tuple[str, ...]
    default_output_modes: tuple[str, ...]
    skills: tuple[AgentSkill, ...]
    signatures: Many[AgentCardSignature] = ()
    icon_url: str | None = None
