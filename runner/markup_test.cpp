// SPDX-License-Identifier: Apache-2.0
#include "runner/markup.h"

#include <catch2/catch_test_macros.hpp>
#include <cstdint>

namespace attest {
namespace {

TEST_CASE("utf8 keeps what is valid and replaces every other byte") {
  CHECK(utf8("K·Vᵀ 😀") == "K·Vᵀ 😀");
  CHECK(utf8("a\xFFz") == "a\uFFFDz");
  CHECK(utf8("\xE2\x82") == "\uFFFD\uFFFD");                 // cut short
  CHECK(utf8("\xC0\xAF") == "\uFFFD\uFFFD");                 // overlong '/'
  CHECK(utf8("\xED\xA0\x80") == "\uFFFD\uFFFD\uFFFD");       // half of a UTF-16 pair
  CHECK(utf8("\xF4\x90\x80\x80").substr(0, 3) == "\uFFFD");  // beyond U+10FFFF
  CHECK(utf8(std::string_view("a\0b", 3)).size() == 3);
}

TEST_CASE("printable is one line that moves no cursor") {
  CHECK(printable("ok\n\x1B[2J\x1B[1;1HCERTIFIED") == "ok\\n\\x1B[2J\\x1B[1;1HCERTIFIED");
  CHECK(printable("a\xC2\x9B"
                  "31m") == "a\\x9B31m");  // the one-character form of ESC [
  CHECK(printable("x\u202Ey") == "x\\u202Ey");
  CHECK(printable("\xFF") == "\\xFF");
  CHECK(printable("a · b") == "a · b");
}

TEST_CASE("shortened counts characters") {
  CHECK(shortened("äöü", 3) == "äöü");
  CHECK(shortened("äöüß", 3) == "äö…");
  CHECK(shortened("abc", 0).empty());
  CHECK(width("äöü") == 3);
}

TEST_CASE("escaping for XML and HTML") {
  CHECK(escape_text("a < b && \"c\" > 'd'\n\te") == "a &lt; b &amp;&amp; \"c\" &gt; 'd'\n\te");
  CHECK(escape_attribute("a\"b'\n<\t") == "a&quot;b'&#10;&lt;&#9;");
  CHECK(escape_text("\x1B[31m \xFF \x01") == "\\x1B[31m \\xFF \\x01");
  CHECK(escape_text("]]>") == "]]&gt;");
  CHECK(escape_text("\uFFFE") == "\\uFFFE");
}

TEST_CASE("escaping for Markdown") {
  CHECK(escape_markdown("a|b *c* _d_\n<e>") == "a\\|b \\*c\\* \\_d\\_\\\\n\\<e\\>");
  CHECK(escape_markdown("with_cache/a _x") == "with_cache/a \\_x");
  CHECK(code_markdown("with_cache/x") == "`with_cache/x`");
  CHECK(code_markdown("a|b") == "`a\\|b`");
  CHECK(code_markdown("a``b") == "``` a``b ```");
}

}  // namespace
}  // namespace attest
