"""What the official client makes of the proxy: each check prints a line, and a failed one ends the script."""

import openai

client = openai.OpenAI(base_url="http://127.0.0.1:8010/v1", api_key="none", max_retries=0, timeout=60)
user = [{"role": "user", "content": "Say hello."}]


def refused(kind, code, **asked):
    asked = {"model": "default", "messages": user, "max_tokens": 4, **asked}
    try:
        client.chat.completions.create(**asked)
    except kind as error:
        assert type(error) is kind, error
        assert code is None or error.code == code, error.body
        return error
    raise AssertionError(f"{asked} was not refused")


ids = [model.id for model in client.models.list()]
assert ids == ["default", "absent", "gemma"], ids
assert client.models.retrieve("gemma").max_model_len == 2048
print("models")

chat = client.chat.completions.create(model="default", messages=user, max_tokens=8)
assert chat.choices[0].message.content and chat.usage.completion_tokens > 0, chat
print("chat")

chunks = list(client.chat.completions.create(model="gemma", messages=user, max_tokens=8, stream=True))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert len(chunks) > 3 and text, chunks
assert chunks[-1].choices[0].finish_reason in ("stop", "length"), chunks[-1]
print("stream")

weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# So small a model calls none; that its server read them is seen by what it counts.
asked = {"model": "gemma", "messages": user, "max_tokens": 1}
plain = client.chat.completions.create(**asked)
tools = client.chat.completions.create(**asked, tools=[weather], tool_choice="auto")
assert tools.usage.prompt_tokens > plain.usage.prompt_tokens + 40, (plain, tools)
print("tools")

embedded = client.embeddings.create(model="gemma", input=["one", "two"], encoding_format="float")
assert [len(each.embedding) for each in embedded.data] == [640, 640], embedded
print("embeddings")

error = refused(openai.NotFoundError, "model_not_found", model="nobody")
assert "There are: absent, gemma" in error.message, error
refused(openai.ConflictError, "model_not_loaded", model="absent")
# Its server's own error, unchanged.
error = refused(openai.BadRequestError, None, messages=[{"role": "nobody", "content": 5}])
assert error.response.headers["x-berth-model"] == "gemma", error
assert error.body["code"] == 400, error.body
print("errors")
