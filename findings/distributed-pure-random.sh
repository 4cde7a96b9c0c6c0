#!/usr/bin/env bash
# distributed 2026.8.0: submit, pure by default, of random.random and of a method of a random.Random.
# Installs pinned public packages in a temporary folder, runs them by themselves, and exits non-zero if what is seen has changed.
set -eu
python=${PYTHON:-python3.14}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if command -v uv >/dev/null; then
    uv venv --quiet --python "$python" env
    install="uv pip install --python env/bin/python"
else
    "$python" -m venv env
    install="env/bin/python -m pip install --disable-pip-version-check"
fi
$install --quiet --only-binary :all: distributed==2026.8.0
cat > program.py <<'P'
import random
import distributed

def main():
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        def twice(between=lambda: None):
            first = client.submit(own.random)
            value = first.result()
            between()
            second = client.submit(own.random)
            return value == second.result()

        own = random.Random(3)
        print("own generator", twice())
        print("own generator, used here in between", twice(own.random))
        state = random.getstate()
        first = client.submit(random.random)
        value = first.result()
        print("the global generator is as before the submit", random.getstate() == state)
        print("random.random", value == client.submit(random.random).result())

if __name__ == "__main__":
    main()
P
seen=$(env/bin/python program.py 2>/dev/null)
env/bin/python -VV; echo "distributed 2026.8.0; are the values of two equal submits, the first of them held, the same?"; echo "$seen"
[ "$seen" = "own generator True
own generator, used here in between False
the global generator is as before the submit False
random.random False" ]
echo "as stated: the key holds the state of the generator, so a generator at rest gives one value for both, and random.random another, as that generator has moved on by then"
