"""Settings by pattern: what they parse to, and how they are refused."""

from absl.testing import absltest, parameterized

from atalaia import rules
from atalaia.errors import UserError


class ParseTest(parameterized.TestCase):
    def test_order_spaces_and_empty_parts(self):
        found = rules.parse("f", " a=1 ;; b.*$ = 2;", int, "number")
        self.assertEqual(found, [("a", 1), ("b.*$", 2)])
        self.assertEqual(rules.parse("f", "", int, "number"), [])

    def test_the_last_equals_sign_separates(self):
        self.assertEqual(rules.parse("f", "(?=a)b=3", int, "number"), [("(?=a)b", 3)])

    @parameterized.parameters("a", "a=", "=1", "a=x")
    def test_refuses_what_is_no_pair(self, text):
        with self.assertRaisesRegex(UserError, "f: .* is not pattern=number"):
            rules.parse("f", text, int, "number")

    def test_refuses_what_is_no_regular_expression(self):
        with self.assertRaisesRegex(UserError, r"f: '\(' is no regular expression"):
            rules.parse("f", "(=1", int, "number")


if __name__ == "__main__":
    absltest.main()
