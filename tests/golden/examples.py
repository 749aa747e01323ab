"""What the golden files hold: each A2A type with every field set, and each kind of a choice."""

from __future__ import annotations

from msgspec import Raw

from xnai.protocol.a2a import (
    A2AObject,
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from xnai.protocol.card import (
    AgentCapabilities,
    AgentCard,
    AgentCardSignature,
    AgentExtension,
    AgentInterface,
    AgentProvider,
    AgentSkill,
    APIKeySecurityScheme,
    AuthorizationCodeOAuthFlow,
    ClientCredentialsOAuthFlow,
    DeviceCodeOAuthFlow,
    HTTPAuthSecurityScheme,
    ImplicitOAuthFlow,
    MutualTlsSecurityScheme,
    OAuth2SecurityScheme,
    OAuthFlows,
    OpenIdConnectSecurityScheme,
    PasswordOAuthFlow,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)

EXTENSION = "urn:xnai:agent-bus:v1"
TASK, CONTEXT = "Zq3v9mT1yKc8sRw2LxE0aA", "hN5uB7dQ4fJ6gP1iVtO3kM"
AT = "2026-11-21T09:30:00.250Z"

# Parts: a choice of four, each with all that may stand beside it.
_about = {"origin": "unit", "weights": [0.5, 2, None], "nested": {"true": True}}
part_text = Part(
    text='Grüße, 世界 🌍\n\t"quoted"', metadata=_about, filename="hello.txt", media_type="text/plain"
)
part_raw = Part(
    raw=bytes(range(250, 256)), metadata=_about, filename="b.bin", media_type="application/octet-stream"
)
part_url = Part(
    url="https://example.org/a?b=c#d", metadata=_about, filename="d.pdf", media_type="application/pdf"
)
part_data = Part(
    data=Raw(b'{"n":21,"x":0.5,"list":[1,"two",null,true]}'),
    metadata=_about,
    filename="n.json",
    media_type="application/json",
)
part_null = Part(data=Raw(b"null"), media_type="application/json")

message = Message(
    message_id="m-1",
    context_id=CONTEXT,
    task_id=TASK,
    role=Role.USER,
    parts=(part_text, part_data),
    metadata={EXTENSION: {"sender": "ada"}},
    extensions=(EXTENSION,),
    reference_task_ids=("earlier-1", "earlier-2"),
)
status = TaskStatus(
    state=TaskState.WORKING,
    message=Message(message_id="m-2", role=Role.AGENT, parts=(Part(text="half done"),)),
    timestamp=AT,
)
artifact = Artifact(
    artifact_id=f"{TASK}-1",
    name="answer",
    description="What was asked for",
    parts=(part_data, part_raw),
    metadata={EXTENSION: {"attempt": 1}},
    extensions=(EXTENSION,),
)
task = Task(
    id=TASK,
    context_id=CONTEXT,
    status=TaskStatus(state=TaskState.COMPLETED, timestamp=AT),
    artifacts=(artifact,),
    history=(message,),
    metadata={EXTENSION: {"attempt": 1, "sender": "ada"}},
)
status_update = TaskStatusUpdateEvent(
    task_id=TASK, context_id=CONTEXT, status=status, metadata={EXTENSION: {"attempt": 1}}
)
artifact_update = TaskArtifactUpdateEvent(
    task_id=TASK,
    context_id=CONTEXT,
    artifact=artifact,
    append=True,
    last_chunk=True,
    metadata={EXTENSION: {"attempt": 1, "index": 3}},
)

# Cards.
extension = AgentExtension(
    uri=EXTENSION,
    description="Durable tasks over NATS",
    required=True,
    params={"lanes": ["urgent", "normal"]},
)
# False is said here, not left out: these members are `optional` in the specification.
capabilities = AgentCapabilities(
    streaming=True, push_notifications=False, extensions=(extension,), extended_agent_card=False
)
interface = AgentInterface(
    url="nats://127.0.0.1:4222", protocol_binding=EXTENSION, tenant="home", protocol_version="1.0"
)
provider = AgentProvider(url="https://example.org", organization="Example")
string_list = StringList(list=("read", "write"))
requirement = SecurityRequirement(schemes={"login": string_list, "tls": StringList()})
skill = AgentSkill(
    id="double",
    name="Double",
    description="Twice a number",
    tags=("demo", "arithmetic"),
    examples=("double 21",),
    input_modes=("application/json",),
    output_modes=("application/json", "text/plain"),
    security_requirements=(requirement,),
)
_login, _token = "https://id.example.org/login", "https://id.example.org/token"
_refresh, _scopes = "https://id.example.org/refresh", {"read": "Read tasks"}
authorization_code = AuthorizationCodeOAuthFlow(
    authorization_url=_login, token_url=_token, refresh_url=_refresh, scopes=_scopes, pkce_required=True
)
client_credentials = ClientCredentialsOAuthFlow(token_url=_token, refresh_url=_refresh, scopes=_scopes)
implicit = ImplicitOAuthFlow(authorization_url=_login, refresh_url=_refresh, scopes=_scopes)
password = PasswordOAuthFlow(token_url=_token, refresh_url=_refresh, scopes=_scopes)
device_code = DeviceCodeOAuthFlow(
    device_authorization_url="https://id.example.org/device",
    token_url=_token,
    refresh_url=_refresh,
    scopes=_scopes,
)
flows = OAuthFlows(authorization_code=authorization_code)
api_key = APIKeySecurityScheme(description="A key", location="header", name="X-API-Key")
http_auth = HTTPAuthSecurityScheme(description="A token", scheme="Bearer", bearer_format="JWT")
oauth2 = OAuth2SecurityScheme(
    description="Log in",
    flows=flows,
    oauth2_metadata_url="https://id.example.org/.well-known/oauth-authorization-server",
)
open_id = OpenIdConnectSecurityScheme(
    description="Log in", open_id_connect_url="https://id.example.org/.well-known/openid-configuration"
)
mtls = MutualTlsSecurityScheme(description="A certificate")
signature = AgentCardSignature(
    protected="eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIn0", signature="c2lnbmF0dXJl", header={"kid": "k1"}
)
card = AgentCard(
    name="maths",
    description="Arithmetic",
    supported_interfaces=(interface,),
    provider=provider,
    version="1.0.0",
    documentation_url="https://example.org/docs",
    capabilities=capabilities,
    security_schemes={
        "login": SecurityScheme(oauth2_security_scheme=oauth2),
        "tls": SecurityScheme(mtls_security_scheme=mtls),
    },
    security_requirements=(requirement,),
    default_input_modes=("application/json",),
    default_output_modes=("application/json",),
    skills=(skill,),
    signatures=(signature,),
    icon_url="https://example.org/icon.png",
)

A2A: dict[str, A2AObject] = {
    "part_text": part_text,
    "part_raw": part_raw,
    "part_url": part_url,
    "part_data": part_data,
    "part_null": part_null,
    "message": message,
    "task_status": status,
    "artifact": artifact,
    "task": task,
    "task_status_update_event": status_update,
    "task_artifact_update_event": artifact_update,
    "agent_card": card,
    "agent_skill": skill,
    "agent_interface": interface,
    "agent_capabilities": capabilities,
    "agent_extension": extension,
    "agent_provider": provider,
    "agent_card_signature": signature,
    "security_requirement": requirement,
    "string_list": string_list,
    "security_scheme_api_key": SecurityScheme(api_key_security_scheme=api_key),
    "security_scheme_http_auth": SecurityScheme(http_auth_security_scheme=http_auth),
    "security_scheme_oauth2": SecurityScheme(oauth2_security_scheme=oauth2),
    "security_scheme_open_id_connect": SecurityScheme(open_id_connect_security_scheme=open_id),
    "security_scheme_mtls": SecurityScheme(mtls_security_scheme=mtls),
    "api_key_security_scheme": api_key,
    "http_auth_security_scheme": http_auth,
    "oauth2_security_scheme": oauth2,
    "open_id_connect_security_scheme": open_id,
    "mutual_tls_security_scheme": mtls,
    "oauth_flows_authorization_code": flows,
    "oauth_flows_client_credentials": OAuthFlows(client_credentials=client_credentials),
    "oauth_flows_implicit": OAuthFlows(implicit=implicit),
    "oauth_flows_password": OAuthFlows(password=password),
    "oauth_flows_device_code": OAuthFlows(device_code=device_code),
    "authorization_code_oauth_flow": authorization_code,
    "client_credentials_oauth_flow": client_credentials,
    "implicit_oauth_flow": implicit,
    "password_oauth_flow": password,
    "device_code_oauth_flow": device_code,
}
