#!/usr/bin/env bash
# cloudpickle 3.1.3: what a class of __main__ keeps in the receiver when a second instance of it arrives.
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
$install --quiet --only-binary :all: cloudpickle==3.1.3
cat > send.py <<'P'
import subprocess, sys
import cloudpickle

class Counter:
    count = 0
    def hello(self):
        return "old"

first = cloudpickle.dumps(Counter())
Counter.hello = lambda self: "new"
second = cloudpickle.dumps(Counter())
subprocess.run([sys.executable, "receive.py"], input=repr((first, second)), text=True, check=True)
P
cat > receive.py <<'P'
import pickle, sys
first, second = eval(sys.stdin.read())
a = pickle.loads(first)
type(a).count = 5
print(a.hello(), a.count)
b = pickle.loads(second)
print(type(a) is type(b), a.hello(), b.hello(), a.count)
P
seen=$(env/bin/python send.py)
env/bin/python -VV; echo "cloudpickle 3.1.3; the receiver before and after the second instance arrives:"; echo "$seen"
[ "$seen" = "old 5
True new new 0" ]
echo "as stated: the class is one and the same, and each arrival writes the sender's attributes over the receiver's: the older instance's method changes, and the count that the receiver kept on the class is 0 again"
