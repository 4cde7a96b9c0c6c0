"""
A process that loads a server over loopback, and prints as JSON the ids of the accounts that the server said it accepted.

    python load.py URL COUNT [STOP_FILE]

Sends COUNT requests, or as many as it can until STOP_FILE exists; from a few threads.
"""

import http.client
import itertools
import json
import os
import sys
import threading
import time
import urllib.parse

THREADS = 4
DEADLINE = 40.0


def main(url: str, count: int, stop_file: str = "") -> None:
    netloc = urllib.parse.urlsplit(url).netloc
    numbers = itertools.count()
    accepted: list[int] = []
    failed: list[str] = []
    deadline = time.monotonic() + DEADLINE

    def work() -> None:
        while next(numbers) < count and time.monotonic() < deadline:
            if stop_file and os.path.exists(stop_file):
                break
            # A connection for each: a server that recycles its workers may close a kept one just when it is used again.
            connection = http.client.HTTPConnection(netloc, timeout=20)
            try:
                connection.request(
                    "POST",
                    "/accounts",
                    "name=ada",
                    {"Content-Type": "application/x-www-form-urlencoded", "Connection": "close"},
                )
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                # A worker went away with the connection; what it had not answered, it had not accepted.
                failed.append(repr(error))
                continue
            finally:
                connection.close()
            if response.status == 201:
                accepted.append(json.loads(body)["id"])
            else:
                failed.append(f"{response.status}: {body[-2000:]!r}")

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"accepted": accepted, "failed": failed}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
