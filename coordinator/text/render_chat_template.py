"""Renders chat templates for the coordinator, one row after the other, in a process of its own.

Standard input and output carry messages: 4 bytes length (little endian), then JSON. The first message out is {"ready":
true}. The first one in holds templates (by name: "default", "tool_use"), variables (special tokens), cpu_seconds (of one
row) and api (see prepared_for_api); it is answered with {"error": null} or why a template does not compile. Each further one
is a row: messages, tools, documents, add_generation_prompt, continue_final_message, now (ISO date-time that pins
strftime_now), chat_template_kwargs (more variables), and any other variable under its own name; the answer is {"text": ...}
or {"error": ...}.
"""

import os

os.closerange(3, 1 << 20)  # what the coordinator had open is nothing to a template

import datetime
import functools
import json
import resource
import secrets
import signal
import struct
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

MEMORY_BYTES = 1 << 30
MAX_TEXT = 1 << 24  # characters
MAX_ERROR = 2000
ROW_FIELDS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "now", "chat_template_kwargs")
FINAL_MARK = f"CONTINUED{secrets.token_hex(16)} "  # nobody's text has it; the blank shows whether the template trims
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class RowError(Exception):
    """What is wrong with a row itself."""


class GenerationBlock(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks what a model said; when rendering it is just its content, as of a call
    block: what it sets is lost at its end, no break leaves it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """namespace(), but for names that begin with an underscore."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]  # so that one attribute may be called self
        attributes = dict(*args, **kwargs)
        for name in attributes:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        Namespace.check(name)
        super().__setitem__(name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"attribute {name!r} of a namespace may not be set")


class Dict:
    """dict(): makes dictionaries, and has nothing of the class."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(str(message))


class Clock:
    """strftime_now in local time, or at a pinned moment."""

    now = None

    @classmethod
    def strftime(cls, layout):
        return (cls.now or datetime.datetime.now()).strftime(layout)


class NoContent(str):
    """The content of a message without one: `none` to a template's test, the empty text to all else."""


def make_environment():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.tests["none"] = lambda value: value is None or isinstance(value, NoContent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = Clock.strftime
    environment.globals["namespace"] = Namespace
    environment.globals["dict"] = Dict()
    return environment


ENVIRONMENT = make_environment()


@functools.lru_cache(maxsize=8)
def compiled(source):
    return ENVIRONMENT.from_string(source)


def with_reasoning_aliases(message):
    """The first of the names for a message's reasoning that is not null fills reasoning_content and thinking."""
    if not isinstance(message, dict):
        return message
    found = next((message[f] for f in REASONING_FIELDS if message.get(f) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


class Arguments(dict):
    """Arguments of a call: an object, that templates which were written for its text may still add to a text."""

    def __add__(self, text):
        return to_json(self) + text

    def __radd__(self, text):
        return text + to_json(self)


def prepared_for_api(message):
    """OpenAI's form of a message -> the one templates are written for. Arguments of calls come as text and are shown as an
    object; an assistant's message may have no content."""
    if message["role"] != "assistant":
        return message
    message = dict(message)
    if message.get("content") is None:
        message["content"] = NoContent()
    calls = message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = [
            dict(call, function=dict(call["function"], arguments=Arguments(json.loads(call["function"]["arguments"])))) for call in calls
        ]
    return message


def with_final_mark(messages):
    """(messages, text): the last message's text has FINAL_MARK behind it, to be seen where the template writes it."""
    message = dict(messages[-1]) if messages else {}
    content = message.get("content")
    if isinstance(content, list):
        parts = list(content)
        last = next((i for i in reversed(range(len(parts))) if isinstance(parts[i], dict) and isinstance(parts[i].get("text"), str)), None)
        if last is None:
            raise RowError("continue_final_message: the final message has no text to continue")
        text = parts[last]["text"]
        parts[last] = dict(parts[last], text=text + FINAL_MARK)
        message["content"] = parts
    elif isinstance(content, str) and not isinstance(content, NoContent):
        text = content
        message["content"] = content + FINAL_MARK
    else:
        raise RowError("continue_final_message: the final message has no content to continue")
    return messages[:-1] + [message], text


def cut_at_final_mark(rendered, text):
    """Continues the last message: drops what the template wrote behind its text, and blanks at its end if the template does."""
    place = rendered.rfind(FINAL_MARK.strip())
    if place < 0 or text.strip() not in rendered:
        raise RowError("continue_final_message: the template does not show the final message's content as it is")
    kept = rendered[:place]
    return kept if rendered.startswith(FINAL_MARK, place) else kept.rstrip()


def moment(now):
    try:
        return None if now is None else datetime.datetime.fromisoformat(now)
    except (TypeError, ValueError):
        raise RowError("now: not an ISO date-time") from None


class Renderer:
    def __init__(self, setup):
        self.templates = setup["templates"]
        self.variables = setup["variables"]
        self.api = setup["api"]

    def template_for(self, tools):
        if tools is not None and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" not in self.templates:
            raise RowError(f"none of the chat templates is the default one: there are {sorted(self.templates)}")
        return self.templates["default"]

    def render(self, row):
        if not isinstance(row, dict):
            raise RowError("not a JSON object")
        messages = row.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise RowError("messages: must be a list of objects")
        kwargs = row.get("chat_template_kwargs") or {}
        if not isinstance(kwargs, dict):
            raise RowError("chat_template_kwargs: must be an object")
        for name in ROW_FIELDS:
            if name in kwargs:
                raise RowError(f"chat_template_kwargs: {name} is a field of its own")
        Clock.now = moment(row.get("now"))
        variables = dict(self.variables)
        variables.update((name, value) for name, value in row.items() if name not in ROW_FIELDS)
        variables.update(kwargs)
        if self.api:
            messages = [prepared_for_api(message) for message in messages]
        final_text = None
        if row.get("continue_final_message"):
            messages, final_text = with_final_mark(messages)
        variables.update(
            messages=[with_reasoning_aliases(message) for message in messages],
            tools=row.get("tools"),
            documents=row.get("documents"),
            add_generation_prompt=row.get("add_generation_prompt", False),
        )
        text = "".join(bounded(compiled(self.template_for(row.get("tools"))).generate(variables)))
        return text if final_text is None else cut_at_final_mark(text, final_text)


def bounded(pieces):
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_TEXT:
            raise RowError(f"the text is longer than {MAX_TEXT} characters")
        yield piece


def what_failed(error):
    """raise_exception's message is the template's own; all else is told with its kind."""
    if isinstance(error, RowError) or type(error) is jinja2.exceptions.TemplateError:
        return str(error)
    if isinstance(error, jinja2.exceptions.TemplateSyntaxError):
        return f"{type(error).__name__}: {error.message} (line {error.lineno})"
    if isinstance(error, RecursionError):
        return "RecursionError: the template recurses without end"
    if isinstance(error, MemoryError):
        return "MemoryError: the template needs too much memory"
    return f"{type(error).__name__}: {error}"


def encoded(work):
    """The message that tells what work() gave, or why it failed: whatever a template makes Python raise is its own fault."""
    try:
        return json.dumps(work()).encode()
    except Exception as error:
        try:
            text = what_failed(error)
        except Exception:
            text = type(error).__name__
        return json.dumps({"error": text[:MAX_ERROR].encode("utf-8", "replace").decode()}).encode()


def setup_answer(renderer):
    for source in renderer.templates.values():
        compiled(source)
    return {"error": None}


def row_answer(renderer, data):
    try:
        row = json.loads(data)
    except ValueError as error:
        raise RowError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise RowError("not valid JSON: it nests too deep") from None
    text = renderer.render(row)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("the text holds half of a surrogate pair") from None
    return {"text": text}


def confine():
    """A second wall behind the sandbox: no file can be opened, no process started. What is imported late is loaded before."""
    import encodings.ascii, encodings.idna, encodings.latin_1, encodings.punycode, encodings.raw_unicode_escape
    import encodings.unicode_escape, encodings.utf_16, encodings.utf_32
    import html, jinja2.constants, jinja2.debug, linecache, pprint, stringprep, textwrap, traceback, unicodedata

    Clock.strftime("%c %Z")
    for trial in ("{{ '\\u00e9a'|wordwrap(1) }}{{ nothing.at_all }}", "{{ lipsum(1) }}{{ 'a'|urlize }}{{ 1|pprint }}", "{% if %}"):
        encoded(lambda: compiled(trial).render())
    compiled.cache_clear()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def limit_cpu(seconds):
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, resource.RLIM_INFINITY))


def read_exactly(stream, size):
    data = stream.read(size)
    if len(data) < size:
        sys.exit(0)  # the coordinator has gone
    return data


def receive(stream):
    return read_exactly(stream, struct.unpack("<I", read_exactly(stream, 4))[0])


def send(stream, data):
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the coordinator
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    confine()
    send(sink, json.dumps({"ready": True}).encode())
    setup = json.loads(receive(source))
    renderer = Renderer(setup)
    limit_cpu(setup["cpu_seconds"])
    send(sink, encoded(lambda: setup_answer(renderer)))
    while True:
        data = receive(source)
        limit_cpu(setup["cpu_seconds"])
        send(sink, encoded(lambda: row_answer(renderer, data)))


if __name__ == "__main__":
    main()
