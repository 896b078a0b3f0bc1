#!/usr/bin/env python3
"""stream_story.py URL PROMPT: prints a completion as it is generated (server-sent events)."""
import json
import sys
import urllib.request


def main(url, prompt):
    with urllib.request.urlopen(url + "/v1/models", timeout=60) as models:
        model = json.load(models)["data"][0]["id"]
    body = {"model": model, "prompt": prompt, "max_tokens": 200, "temperature": 0.7, "top_p": 0.95, "seed": 4, "stream": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    sys.stdout.write(prompt)
    with urllib.request.urlopen(request, timeout=60) as events:
        for line in events:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                print()
                return 0
            event = json.loads(line[len(b"data: "):])
            if "error" in event:
                print("\n" + event["error"]["message"], file=sys.stderr)
                return 1
            for choice in event["choices"]:
                sys.stdout.write(choice["text"])
            sys.stdout.flush()
    print("\nthe stream ended before [DONE]", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
