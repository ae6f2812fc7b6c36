"""Values and records in format 1 of persisted results, written by the code that had no other one.

Each is zlib-compressed and in base64. `made` makes the values anew, to compare them with what is
read.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import pandas as pd
import torch


def content_of(text: str) -> bytes:
    """The bytes as they were written."""
    return zlib.decompress(base64.b64decode(text))


def made() -> dict[str, Any]:
    """The values that were written, by name."""
    readonly = np.arange(50)
    readonly.flags.writeable = False
    noise = np.random.default_rng(3).integers(0, 5, 600).astype("f4")
    return {
        "pco": np.arange(3_000),
        "shuffled": (np.arange(600) % 7 * 1000).astype("f4") + noise,
        "chunks": np.zeros(1_100_000),
        "text": "one line and another\n" * 200,
        "bytes": b"abc" * 30_000,
        "bytearray": bytearray(b"xyz" * 30_000),
        "fortran": np.asfortranarray(np.arange(600.0).reshape(20, 30)),
        "read-only": readonly,
        "strided": np.arange(2_000)[::3],
        "broadcast": np.broadcast_to(np.arange(100), (20, 100)),
        "tensor": torch.arange(600.0).reshape(20, 30).t(),
        "bfloat16": torch.arange(600).bfloat16(),
        "strings": np.array(["red", "green", None, "blue"] * 200, dtype=object),
        "dates": np.arange(300).astype("M8[s]"),
        "plain": {"a": [1, 2.5, None], "b": ("x", b"y")},
        "frame": pd.DataFrame(
            {
                "i": np.arange(300),
                "s": ["red", "green", "blue"] * 100,
                "t": pd.date_range("2020", periods=300, freq="s"),
            }
        ),
    }


VALUES: dict[str, str] = {
    "pco": (
        "eNqbnJKWk19uyBV5O3zeb13xGUH6t/ZPjzNvZ2JgYOhngABbKM3gxMDACKTKoVwY3cA6NQfK7BHOK80tqNSLT84v"
        "StUDslOLMpOn9HDHpxXl5yaVpqWlFk2ZPEVjeg8rWN2UHtaUksqCVKBYD1OmxZTOjvYpQVM0vJl7GG2m+Pn5ef0H"
        "AjDhzVAyJcl3B3frlB5G5yklQFV6rDkQ5xyIhditCnVDQXK+IjMD9zsmFkaW7dwMAoyMDVAZB5hHGhgAaQ9EHA=="
    ),
    "shuffled": (
        "eNqbnJKWk19uyMXGcO6hUU5TcPwtwy/O/HYeTAwMDP0MEJDDCGU4MTCAmOVQLoxuYJ2aA2X2COeV5hZU6sUn5xel"
        "6gHZqUWZyVN6uOPTivJzk0rT0lKLpkyeojG9hxWsbkoPa0pJZUEqUKyHKc1kSmdH+5SgKRrezD2MNlP8/Py8/gMB"
        "mPBmKJmS5BvB1Dqlh9F5SglQlR5rGsQ5CZwQu0OgzixIzldkZuCcxsLIGs7EAPTID+lGlgZGty//9zMcEfz7P99A"
        "QZ6BgWXZaXYGBnYOsBYmFqAv/Juvs936GPO26333q/upOX0vJ69ZfSB7Of/u7h1btm0PlDea1GWzptCMS25qofIa"
        "/kU6nYWHvLqX88W4tZ22Kd1jYnhFrc9FT9XcVy257aBe1OT8WSG6KUt9/SR75vT4JQRPDL0yw9HVSXVe0+QurSns"
        "yWk3CgRn6kv/Y70/Ze2CHxOv8IYt0q+T3yXqv3Sb7l9OHzc1FvZjeWc8NbOULh7UcstbEtZ4STzyzra2Oa4PZ6+R"
        "KdrUzaTq9VaklGvtCYWlFjHHZIAhP/fCxFlbQqZ4mFzdVFjK0bXJId+vJ7Z7bdeujaLCt7dp9sukyplrP17rJtgT"
        "/E5NdI5FqTFr96rH+7wmTLtyxexw87GKyVKVgpqHrPwC1e0THKs73X1E/Q9rbJ8VJMEAAFOXySo="
    ),
    "chunks": (
        "eNqbnJKWk19uyPXTjfOp2u/SoN2PfG5OtbGUYWJgYJjIAAEdUJrBiYGBEUhVQrkwuoF1ah6U2SOcV5pbUKkXn5xf"
        "lKoHZKcWZSZP6eGOTyvKz00qTUtLLZoyeYrG9B5WsLopPawpJZUFqUCxHqY0iymdHe1TgqZoeDP3MNpM8fPz8/oP"
        "BGDCm6FkSpLXgxMCDK1Tehidp5QA1ekxpTAwMIOsdW8D264AdQU6zcrYysHA4ABksYDFGCGiMG8JECXvzoZTHgDW"
        "nkQm"
    ),
    "text": (
        "eNqbnJKWk19uyKVoqx3pIbqq8OUrjsYdn+7PZmRgYPBngABGJyAG0lUCEL45VFxjq/7fhCr+XEYGFaYG1qn5AgwR"
        "GUAl+XmpCjmZQCIxLwWI80syUou4pugxMTgxnrNjYWAHAHN9G58="
    ),
    "bytes": (
        "eNqbnJKWk19uyHVqMf/N4OCsU9u7fRjYp6syMzEwMEQxQIA+lGZwYmBghFAwLhg0sE41hzJ75FNSUwtARupl5pWk"
        "FuWmpmQmlqQW6xVkJmfnZOalT+nhjE+qBIrE56dNmTxl+ozWKUFT9BidGMEmT4hnBBsjDjVOY6v+3wUgwVgGBonE"
        "pGRGhq74Z3kcAM6JK+0="
    ),
    "bytearray": (
        "eNqbnJKWk19uyGXGJMJ1RXrzXh6FO9yfbnXrMzEwMDgxQIA+lAYJMAIpLSgXRjewTpWHMns4kkozc0oy84qn9HAm"
        "VZakJhYVJVZOmTxleuuUoCl6jFATJsQzgpWLQ7VpbNX/uwAkGMvAIFFRWcXI0BX/LI8DAPQ/If8="
    ),
    "fortran": (
        "eNqbnJKWk19uyHXkSZXT/cdzU0U/rJtS9ybHkYmBgWECAwQUQWkGJwYGRiBVAeXC6AbWqblQZo9wXmluQaVefHJ+"
        "UaoekJ1alJk8pYc7Pq0oPzepNC0ttWjK5Cka03tYweqm9LCmlFQWpALFepjSLKZ0drRPCZqi4c3cw2gzxc/Pz+s/"
        "EIAJb4aSKUneIt5ybVN6GN2mlACV6bGmQNxzQAhieRTUEQXJ+YrMDJzTWBjZwpkYmCCC/6UTmRge7vgPBvwHqqFq"
        "mRRgnmPggDEajhf+6fj/o1H+x0d5+Y/M9v8eK9s9Ol7/h50BAHfrXLQ="
    ),
    "read-only": (
        "eNo1zslKw1AUxvGb1ji0znWeZ+MUW1cuXOnOYBbuRLDQNoFKa0tILQUXbsQKFxR6Rd/APohPUN/Frcb4z7e4v+9c"
        "zuK0Cm6pUs8kzjrtr+bV5+V15+LjLv19GxNCPIv/tDXKsRB/tc4Yea+/lqgydVMrVxtmNl/xHDPojlfMK5nMul6l"
        "nKu5ruOpljLe3qUeLiqpF/xG1Qk+Zax4qJ6aj+pcGVZcakfKtu3TnyDhYwlf5ayDByW1E+UHS6YoaeE5L5wXGSUa"
        "YxjHLtSxG3uwF/swgUnsxwEcxCEcxhEcxRSO4ThO4CRO4TTO4CzO4Twu4CIu4TKu4Cqu4Tpu4CYauIXbuIO7uIcm"
        "7mMaM/gLK99F2g=="
    ),
    "strided": (
        "eNqbnJKWk19uyCXA/EXv8/SqDZv1fnj2vo59zMTAwLCQAQIYGaEMJyAbSHVCuTC6gXVqHZTZw5pXmltQOaWHPbE4"
        "sagosXLK5Ck9wmAxvfjk/KJUPSA7tSgzeUoPd3xaUX5uUmlaWmoRUJXG9Ayg7pSSyoJUkB6mTIspnR3tU4KmaHgz"
        "9zDaTPHz8/P6DwRgwpuhZEqS72ym1ik9jM5TSoCqWoFYjzUH4sAbIhDXvIS6qiA5X5GZ4eQyFkaWWUwMiVBRAbi/"
        "GA44cDBwwDgiMAZDKASIcq0aEoCBAQDMB751"
    ),
    "broadcast": (
        "eNqbnJKWk19uyFW10f//k+uLI2R7fBYGFT5ezcTAwHCaAQJsoDSDEwMDI5DaDOXC6AbWqSugzB75lNTUApCRepl5"
        "JalFuakpmYklqcV6BZnJ2TmZeelTerjik4ryE1OSE4tLpkye0iOcV5pbUKkXn5xflKoHZKcWZSZP6eGOTyvKz00q"
        "TUtLLQKq0pjewwpWN6WHNaWksiAVpJMp02JKZ0f7lKApGt7MPYw2U/z8/Lz+AwGY8GYomZLkzeid0jalh9F5SglQ"
        "mbcIiNcGZOmx5kC8osAMcbcK1P0FyfmKzAxskiyMLMkMDAKMjA1QCQdYGDQwAACNkFxF"
    ),
    "tensor": (
        "eNqbnJKWk19uyMWk+83n+kFus11xgkvvyLRuYGJgYKhigAB7KM3gxMDACKSSoFwY3cA6NRzK7JFPSU0tABmpl5lX"
        "klqUm5qSmViSWqxXkJmcnZOZlz6lhz2+JDWvOL9oyuQpGtP9elhL8ouSM4DCQE2JJcZGQGFvOW+RtinejN5ybVM6"
        "S6YETdFjTYPYnMAJsUYdal1Bcr4iMwPnNBZG1nAmBqCbf0gzMjYAJRxAHKDLIAQA89s2CQ=="
    ),
    "bfloat16": (
        "eNqbnJKWk19uyHXvjOO6e91iSm/XinW5ciccZ2JgYKhggIA1UJrBiYGBEUglQLkwuoF1aiiU2SOfkppaADJSLzOv"
        "JLUoNzUlM7EktVivIDM5OyczL31KD3t8SWpecX7RlMlTNKb79bCW5BclZ0zp4UgC6kosMTQDivtGMLVO8WZsndJZ"
        "MiVoih5rBsTeDSwQS6ZALStIzldkZuCcxsLIEc7EINDE0sDQoBD+6T97CiMDoyeDAtBlDfYMDFUMqYoJ79c/k6uR"
        "0b66Le9/Qd3c13uL3KqBJrxp/v3Bbt/5979/7y1+srZuYWbk87NTZ39tnXZm7uzgvFfcUVHm99bs0tmfk7pnr3FS"
        "6L8Nqys+n7vidTv5espdXadnFuEzw2NTotSnVvpr+rNYb5JnYAAAuJFzsA=="
    ),
    "strings": (
        "eNqbnJKWk19uyOUbqzht84lq6z+939zmXuv5wMjAwHCaAQIYnYAYSMuyQfiboeIaW/X/Jsiy+rIyNJ1U0Z2w9eV/"
        "ENBO9m9r27nLafv3sNetMq5qS4Rven7d76jFuOrCtGV/+dm37K/fv9Wv5mlbC8/OCeners6H/dO0PvwSDr5+lnnL"
        "D6nKd3vLmRRrGC/zOVovCXqR/5x79eVs9fk72VsrZzH/eTBxok30vPzLLl/i66un6qxluTxphlOnnVigFG/IqTC+"
        "YO8mmTer3pR8KQpQsWlmY7Dzfmqv8ch9RWDPrOPL/LYz8AEAL6ti/g=="
    ),
    "dates": (
        "eNoB8gIN/ZNkZmxvdzEKni8WPRIrMb/Eds+DrSBNVgEAAADOAgAAAAAAAAFCAAABAAAACAoAAAAAAAC2AgAAAAAA"
        "ACi1L/1gCAllFQCmsJIKEPhsB///P1oyBbkAewB6ADvkcEMNM8TwQgsrpHBCCSOE8EEHG2RwQQUTRPBAAwskcEAB"
        "AwTwzwuQQ2AkyZFESJKcvyR/Sf6SSIrzF8QEk0n69evXDwkTJkwk6fhTJMDQIUk2lgBQJCmSpDFu7sgRM0BRADOS"
        "Bv2pWPKXxIQkKJIKSQLzF0TSoEkkRRLDpoAiSQMUSYokSU6YOXDkxGHTJswYOF0UKJJ05wscOF/OyFEzZw2LMXDa"
        "hOnC4o6bNXPYUFD0wL5JA/wEf/rZJ5976pknnnfaWSedc8oZJ5xvutkmm2uqmSaaZ5pZJpljihkmmF962SWXW2qZ"
        "JZZXWlkllVNKGSWUTzrZJJNLKpkkkkcaWSSRQwoZJJA/+tgjjzvqmCOON9pYI40zyhgjjC+62CKLK6qYIoonmlgi"
        "iSOKGCKIH3oIwf3W22653VbbbLG91tpqqZ1W2mihfdbZZpldVtlkkT3W2GKJHVbYYIH91ddeed1V11xxvdXWWmmd"
        "VdZYYX3V1VZZXVXVVFE91dRSSR1V1FBB/dTTTjndVNNMMb3U0kopnVTSSCF91NFGGV1U0UQRPdTQQgkdVNBAAQ0s"
        "wEiSI+lfin8o/p34Z+JfiX8k/o34J+JfiH8g/n345+Ffh38c/m34p+Ffhn8Y/l34Z+FfhX8U/k34J+FfhH8Q/j34"
        "5+Bfg38M/i34p+Bfgn8I/h34Z+BfgX8E/g34J+BfgH8A/v3dL7/76psvvvfaWy+988obL7zvutsuu+uqmy6655pb"
        "LrnjihsugTKoIQiyBqm1tQbhK8MYESAo/oX7HPc57nPc57iP4z7HfY77HPc57nO4z3Gf4z7HfRJGHQQIEBAQICAg"
        "QEBAgICAAAEBAQICBATE0+ixCgDAp6qK/49QK6MyZXMlvFSRLU4K"
    ),
    "plain": (
        "eNqbnJKWk19uyCXQOCGJf0O9dUPuL++tDg16jAwMDF4MUODEwADiG0G5MLqBdao6lFk7RaOHMXFK7BQNb0Z3BxaI"
        "oF9qD2PSlB7GiinOjJVT2qaU6gEAFqoXdw=="
    ),
    "frame": (
        "eNqVVXk0FGwXf8aMTNmLNDQisoZkLdvIkp0yUSFkz1hepCnDULZeylgqXmSUbJV9zV6RLSpkhmRpbJnJrrEMn/dr"
        "es97vv++e85zf+fe+9x7z3PuPc8v2dUd43dDcZ/x9aEAp5LTFx4PrHwbsihn3wMAYPytdkXzFwAa5BeqMG11Jgox"
        "EXJm9+wiguuXPcnMl6pUYDghOEdUwWlPrICiiK85WzOAcvAN8u9wrcLpJ74NZQ81Duu/7cyerw5JKtrq0LxzsM1+"
        "NEnQg0pf5U1iOQ+5DsFBoNvrgc8zz/ksqipPuObOQhk/EDyMbC9M6Tq2qcxwIH+69mEzVpHRq3aShhHMHR3veilC"
        "kgwTftTfcbjvTLAU7tRZJKOgVWtx+av54Csbg4ez+MbnwonXhuRnPz2Yxb2vIPBvB/o8Kq6rKkjbnuCtDa7G2A10"
        "iPdlFXYHdRdU+dhlLpEa1X489Bm2QTXNoYdtkMQOkuS2ME/oxDzjw5HvMzp4FeFE+dQw25u4xHfuiuFhE03za33F"
        "P63jNrNb8Uja3NzcHSGumN61PmA1fgDPbZKi9gfsO367M6gx0GmjRVlAFOlQnmpfFSSdFvat1CHZ3O3VlKtEeqcS"
        "o7daST6xNchgCJFg5qZ0jDgqJ5xYwMLoTSjf9ct1rtTRLufJDFD+ikM/oG3IJHh71ykX6X4Y/Xysj3hQ+6tSx0Kv"
        "Y/K1zTOhA9WKjKLTeeg056H33RXhk3e7P1G0xe6rtOiFDiU1U3S1/ZHKOi5eO0rT5GYDuLrD0wY9k/u80Cz4Mkdk"
        "MFQCwYtg7+56VD1RroXoSDByQlXac2Wau6eV+jebXbzZ5S40e5KLne6TknCoXKF9kpVrQVTR/LF3l02UmN/pcAGD"
        "JW30mpByDOINmqc2STKEfJT9D3sooVqULGLhuq9mgYxU48NUy3GT+2Vxs/fETvtqHTopZE3qQjw66ioWQaCddhZx"
        "1PR9dyVRpPjca94SbMS4/IpsV9nB8XNWGUlxDnBUlRg879KEHanqaxEuj63coP5srJyejaEom5/RBpQz3epSIdWU"
        "M0xlmiiBMSIucd2Z3fJX8tToekalLJquPGjuGZdqSr1t2u7vTDKUTUHGKzQTSyVILXQW+FDUSKiZUZxUk8L2F+3e"
        "j/ge6VZlyFrWjmA6bU7mUVuledfKEUdXpQKUwE5oAx4/w83InleN8H3tzKJ6iK1/T7TuJWfese117yV6UfHGQQ1o"
        "7hcU+3394Dch/KSXwm6Wgjq3l1FX7e5nm7Xtbfs0ZRZG+2ypKtyibkZPf6n1xKIRBVOYGSO8vUyz9ymTOej3aizO"
        "iKbttpTOF2McKJNelSR/swDKrjumIk5TlUXoHy5CTXncXXtKvFK1Gm0JYZwn3oMrzBlHkGcCFLBVKWpikAja1VM8"
        "6ho98sXt4YNWN2HKdShFjQ3j5jLtdalG84Kz8hVguJTiVUaVU1l6jGj0pmBSRqCG0dA3UvD16PojL9rvdd5ydsRt"
        "DYzsUTmq9yRKDZn39It7f8DDC6S9QvjBBpv2U/rjAi71MIIchvDxpLOhix1u8N77TtQUbK/akwn8WHAGuNQtipm8"
        "O131ntr1/YiZ/oSvRHCsHfk2MoO4auCMXJOzRTwQypid+VOeqvUsQEgp1TJ2riIz0triVotusDonLL01hzq+7/GJ"
        "FairHa/VudzKGNNaf9NmH08PTZMFQdXpJ956HcmZ5prikZuxlR/V0zjvnvJcUEZreLfmsk86UC6jE2c3CtvEksgZ"
        "piN1x/YXyOdbJwZ5pYbV3xj+eaFlpatg/i+zdyvFxpXPrB2v+5rp9K3ntqzGaAeGjhC3d7+QwPVXurSZppcbr5xu"
        "5ZMrLQr2s3p6xJVY4hqmFgZzCjm+X11eHCLxv9inysoOLrhECV7keMG6NmCbCe3r2V6+9yLQBDE7UmjGOuPoUFkz"
        "VWT4+dQkrzm744+fgIhSvie3/XiucXj3Z0jodLfSuSK0iW3FN/GmMSSN7i+DODLFpoaaIXbg1JtCcUkbsq9SGRxC"
        "OnPUklAtHVXrZq8TL0PwMCnjz24PCRhXxWb0jmzoWbCwS45jCaLp0SfK1aO0iIt7v2vziFqy3HpdQa/nS/Ax1lVF"
        "7/3WMeHtSZWHnuQzJCFaY+pJOrcRyEhyWaBVaR/Wzdg9xH80893+Ur33nUlTY7omxeXOWece4Dl77BrgUeYCMvM8"
        "d1zA4gEOlgiXfFH4a7ujrNKSrMYuzpJen+Ih+8c+yCdJSPNFM5qgoRuKWvyala9/+l+IGmX4Wo+T1flZg9Sd1FVY"
        "VPMiD06nPNwoMPqBhoKwQkv0fnqyiUkav9wz9xHB7p3ZkByF1B1rlzDb8fWmiWX8AcfaO9M7Elk7sto7tou5dtht"
        "P/rWKGUZ3zq9I/M1SBZLe3v+JJ1zZmH4etu8FNEyFMeZ0HbjuIWysGS+3OrzhM2sfuucvssWm0/focpYakKjCDPo"
        "usm8865bnuIlstxe4my0m8iEClFzMQtbc5Fr18O5jxkUSGxc+CNotfszRbZnvTp/qdISZ3hmIEaQ1MuK+UV+Tnt/"
        "kZ44kxT9XfxEoQBuCoPAZCGABwIJZwZQTATh/xCnJzN3APIv4vSEO3CBHAEAdqsADsAN+MChXcoV2e0gCY6DE0Bp"
        "l4g1gQ7QB0bAFFgBNLAF9sAJuABPgAF+IAhgQchul0gQA+IBASSDVJABskAOyAfPQQmoANWgHjSDN6AddINe0A9I"
        "YBiMAQqYBlSwAJYBHWyBHQCDADg7D5/AYRExqeMKyuoaKP2zZlbWF+0dXT29/YNu4MLvxMYnpKSmE3PyXpSU19Q3"
        "vW3v+tA/+GXs2wx1foW+CVhgbBw8Bw4dPiIuJXtCWU0TpWdkZom+aOfk6oHxD8Ti8JGxcYSURxnEp/kviitq6prf"
        "vuv+0Ef6MkqZmVtY+bkFoFA4BzffISERccnjJ5TUNXX0jUyt0Lb2Ti6eGL8gbEh4ZEw8ITk1Iysn/3lJRXV985v2"
        "7t5+0vAYZZq6sEzf2oHB/o8nwH5NIeJ4Pq9IE2S8GMIrrqlzazQkS57/GZ+B9L66wR8N8w20ZwbSUef/TF2FjHwl"
        "a4R4zFMzGwL/VuU31nr+8fzXKL2xp4X797B/l0eCfw27BJq5u0IBbq4eAW5uvlcx190gIHtLwRgwk0SYl3/jb2Eu"
        "DGBhIvR3gJkH/R+/V2DQfwCpxVlC"
    ),
}

RECORD = (
    "eNo1Tz1vE0EQ3Y1tUOwGyRI9KwoX1tnnj+NspbCgiyVLSeFIKOi0tzuHTj77TnvnYGMs3EQQZQWFN8oPSEhBRUWb"
    "MvwIRMX/gD2fPdLOmxnN7HtvzT0BzCw2Sn++85Ph6/J98eOP0nj4EyG0IHESCvoWnBHMSZfUknGUPrcziiyXBrUR"
    "qRKYRb6giR9OSHcyDYIqiUH4NPDfgyDdBUnmEehbDhB5QfhOX1DOBcSxHtbNeoe22owz2zObL5gNpgWttkkt2m7V"
    "mxZZVkkkwAOWOGcg4g0JaRq2Yet/duLcIGQjx+cZ/3LNUx6ziPdvT39/LX/48vTv0d23nrWnHd2gLA62iF4ihDVc"
    "btsdrgpXq225VBWJqZLlyXQczQ2HhQIMXWuTTMmS44lw7E49D4Raq8q1LGz2lCzw1LmeyT3fVhefP6ljVennJD5Q"
    "g8Hg8J+OTeqjRLn9X+dK4lcq0UsSu+pNSjpTA5gahSCT2HuU6Xm+1RWx8FkOPW7kcf4BoScY7wT3dt5W6D9q2Y/T"
)
"""The file of `{"a": np.arange(200), "b": ["x", None]}` in our own store."""

ONE_DOCUMENT = (
    "eNpNUNmugjAU/Jc+G1cw4luLCsUVFRVeDEtVLq02pchF479f8MZlkkmXM3M6p3fAiPQjX/qgfwepvAj/SPYJKUAf"
    "NCTjFQMt4d3Apw0OaoD88lj4Mr6cQf+cUVoDKRGxT+MbEVULWXBSeiNC+IFe8tLhR5Egafovf9QAF+RAQrm/EpE+"
    "24BOvVfvlcrX8wG9hMk+jt6W0p9R+dW2q/ST9pIFhtaZ2mJAm2MtKBydGAvGR7ti5o5deIQQYgW+sIAf2FXNLmm6"
    "77vo+NrpEHkb8S7gfB2cNzI0k2zXnl1D5mTV2dtZ3FVXU72lsZBp0j1vmMc2BbXmztgiU7RVW8EOqRTnI89cqqGx"
    "dZJSD1miUMzwSV2uqH6aQCVHC2s5XyfquFGhKZ7LKkdNaliTAm+dHzgaUHPlONzO0DYvQw1LIohemXX7HTc0Zlds"
    "TyG64SG01+ZzUtv4DD/8+ggMIXj8AaT7pOU="
)
"""The file of `np.arange(200)` in Prefect's store with our serializer."""
