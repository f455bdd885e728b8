from tests.outputs.serve.conftest import serve  # noqa: F401 - a fixture
