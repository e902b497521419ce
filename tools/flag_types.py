"""Types of the tools' flags, whose errors say the rule."""

import argparse
import json
import math
import pathlib


def json_value(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"must be JSON ({error}). Received: {text}") from error


def json_object(text):
    value = json_value(text)
    return _checked(isinstance(value, dict), "a JSON object", value, text)


def json_or_name(text):
    return json_object(text) if text.startswith("{") else text


def positive_int(text):
    return _number(int, lambda value: value > 0, "a positive integer", text)


def positive_float(text):
    return _number(float, lambda value: 0 < value < math.inf, "a positive number", text)


def natural_int(text):
    return _number(int, lambda value: value >= 0, "an integer of at least 0", text)


def natural_float(text):
    return _number(float, lambda value: 0 <= value < math.inf, "a number of at least 0", text)


def share(text):
    return _number(float, lambda value: 0 <= value < 1, "a number in [0, 1)", text)


def seed(text):
    return _number(int, lambda value: 0 <= value < 2**31, "an integer in 0..2^31 - 1", text)


def folder(text):
    return pathlib.Path(_checked(text != "", "a folder", text, repr(text)))


def _number(kind, valid, rule, text):
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    return _checked(valid(value), rule, value, text)


def _checked(valid, rule, value, text):
    if not valid:
        raise argparse.ArgumentTypeError(f"must be {rule}. Received: {text}")
    return value
