"""What can go wrong with a local model.

    InferenceError                        inference_failed  the engine gave no answer; trying again may help
    ├── EngineLost                        engine_lost       it died too often; the agent's process ends
    ├── RequestPoisoned                   poison            the engine died twice while it computed this
    ├── ModelMissing (FileNotFoundError)  model_missing     no file there; the sentence says what to run
    ├── UnknownModel (LookupError)        unknown_model     no model of that name is in the settings
    ├── ModelInvalid (ValueError)         model_invalid     a file that is not the model it should be
    ├── ModelTooLarge                     model_too_large   it does not fit into memory; with the arithmetic
    ├── FetchFailed                       fetch_failed      a download that a person asked for failed
    ├── TemplateFailed (ValueError)       template_failed   no chat template, or it refuses these messages
    ├── RuleInvalid (ValueError)          rule_invalid      a schema, regex or grammar that cannot be kept
    ├── AnswerInvalid (ValueError)        answer_invalid    a finished answer is not what it had to be
    └── PromptTooLong (ValueError)        prompt_too_long   the prompt alone fills the context

Arguments out of range raise `xnai.protocol.errors.InvalidPayload`.
"""

from xnai.protocol.errors import XnaiError


class InferenceError(XnaiError):
    """The engine gave no answer. Trying again may help; with the errors below it does not."""

    code = "inference_failed"


class EngineLost(InferenceError):
    """The engine dies whenever it is started. The process of the agent ends with this."""

    code = "engine_lost"


class RequestPoisoned(InferenceError):
    """The engine died twice while it computed this request, and is spared it from now on."""

    code = "poison"


class ModelMissing(InferenceError, FileNotFoundError):
    """There is no model file where one should be. The sentence says what to run or set."""

    code = "model_missing"


class UnknownModel(InferenceError, LookupError):
    """No model of this name is in the settings. The sentence says which are."""

    code = "unknown_model"


class ModelInvalid(InferenceError, ValueError):
    """A file is damaged, is another one than it should be, or cannot do what is asked of it."""

    code = "model_invalid"


class ModelTooLarge(InferenceError):
    """A model does not fit into memory. Nothing was loaded; the sentence has the arithmetic."""

    code = "model_too_large"


class FetchFailed(InferenceError):
    """A download that a person asked for did not succeed. Nothing was changed."""

    code = "fetch_failed"


class TemplateFailed(InferenceError, ValueError):
    """The model has no chat template, or it cannot render these messages."""

    code = "template_failed"


class RuleInvalid(InferenceError, ValueError):
    """What an answer should look like cannot be read, is not supported, or costs too much to keep to."""

    code = "rule_invalid"


class AnswerInvalid(InferenceError, ValueError):
    """What the model wrote is not what was asked for, although it was held to it."""

    code = "answer_invalid"


class PromptTooLong(InferenceError, ValueError):
    """The prompt leaves no room for an answer in the model's context."""

    code = "prompt_too_long"
