"""Renders chat templates for the coordinator, one request after the other, in a process of its own.

Standard input and output carry messages: 4 bytes length (little endian), then JSON. The first message out is {"ready":
true}. A request holds template, messages, tools, documents, add_generation_prompt, continue_final_message, variables,
kwargs, now (ISO date-time, optional) and cpu_seconds; the answer is {"text": ...} or {"error": ...}.
"""

import datetime
import functools
import json
import resource
import signal
import struct
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

MEMORY_BYTES = 1 << 30
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class GenerationBlock(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks what a model said; when rendering it is just its content."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


class Clock:
    """strftime_now in local time, or at a pinned moment."""

    now = None

    @classmethod
    def strftime(cls, layout):
        return (cls.now or datetime.datetime.now()).strftime(layout)


def make_environment():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = Clock.strftime
    return environment


ENVIRONMENT = make_environment()


@functools.lru_cache(maxsize=64)
def compiled(source):
    # Older versions of jinja2 let a template set any attribute of a namespace.
    for target in ENVIRONMENT.parse(source).find_all(jinja2.nodes.NSRef):
        if target.attr.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"attribute {target.attr!r} of a namespace may not be set")
    return ENVIRONMENT.from_string(source)


def with_reasoning_aliases(message):
    """The first of the names for a message's reasoning that is not null fills reasoning_content and thinking."""
    if not isinstance(message, dict):
        return message
    found = next((message[f] for f in REASONING_FIELDS if message.get(f) is not None), None)
    if found is None:
        return message
    message = dict(message, reasoning_content=found)
    message.setdefault("thinking", found)
    return message


def cut_after_final_message(text, message):
    """Continues the last message: drops what the template wrote behind its content."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = content[-1].get("text", "") if content else ""
    place = text.rfind(content.strip())
    if place < 0:
        raise jinja2.exceptions.TemplateError("continue_final_message: the template does not show the final message's content as it is")
    kept = text[place:]
    return text[:place] + (content.rstrip() if not kept.startswith(content) else content)


def render(request):
    Clock.now = datetime.datetime.fromisoformat(request["now"]) if request.get("now") else None
    variables = dict(request.get("variables") or {})
    variables.update(request.get("kwargs") or {})
    variables.update(
        messages=[with_reasoning_aliases(m) for m in request["messages"]],
        tools=request.get("tools"),
        documents=request.get("documents"),
        add_generation_prompt=request.get("add_generation_prompt", False),
    )
    text = compiled(request["template"]).render(**variables)
    if request.get("continue_final_message"):
        text = cut_after_final_message(text, request["messages"][-1])
    return text


def answer(request):
    try:
        return {"text": render(request)}
    except jinja2.exceptions.TemplateError as error:
        return {"error": error.message or type(error).__name__}
    except RecursionError:
        return {"error": "the template recurses without end"}
    except MemoryError:
        return {"error": "the template needs too much memory"}
    except Exception as error:  # whatever a template makes Python raise is the template's fault
        return {"error": f"{type(error).__name__}: {error}"}


def read_exactly(stream, size):
    data = stream.read(size)
    if len(data) < size:
        sys.exit(0)  # the coordinator has gone
    return data


def send(stream, message):
    data = json.dumps(message).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the coordinator
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    send(sink, {"ready": True})
    while True:
        (size,) = struct.unpack("<I", read_exactly(source, 4))
        request = json.loads(read_exactly(source, size))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + int(request.get("cpu_seconds", 5)) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        send(sink, answer(request))


if __name__ == "__main__":
    main()
