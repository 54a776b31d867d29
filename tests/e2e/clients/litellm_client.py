"""The same of litellm: each check prints a line, and a failed one ends the script."""

import litellm

litellm.suppress_debug_info = True

asked = {
    "model": "openai/gemma",
    "api_base": "http://127.0.0.1:8010/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 8,
    "num_retries": 0,
}

chat = litellm.completion(**asked)
assert chat.choices[0].message.content, chat
print("chat")

text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **asked))
assert text, "an empty stream"
print("stream")

try:
    litellm.completion(**{**asked, "model": "openai/nobody"})
except litellm.NotFoundError as error:
    assert "There are: absent, gemma" in str(error), error
else:
    raise AssertionError("nobody answered")
print("errors")
