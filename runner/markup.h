// SPDX-License-Identifier: Apache-2.0
// Text that a backend may have written, made safe to show: in a terminal, in XML and HTML, in Markdown.
// Names, versions and messages come from code that is under test, so no report may let them forge or break a line.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace attest {

/// Valid UTF-8: each byte that is none becomes U+FFFD.
std::string utf8(std::string_view bytes);

/// One line that moves no cursor: whatever is no visible character (control, line end, text direction, invalid byte)
/// becomes an escape such as \x1B, \n or \u202E. A terminal prints the rest as it is.
std::string printable(std::string_view text);

/// At most `columns` characters; a longer text ends in "…".
std::string shortened(std::string_view text, size_t columns);

/// Characters of a valid UTF-8 text.
size_t width(std::string_view text);

/// Text of an XML or HTML element. Line ends and tabs stay; other control characters become escapes as in `printable`.
std::string escape_text(std::string_view text);

/// An attribute's value between double quotes; line ends become character references.
std::string escape_attribute(std::string_view text);

/// Running text of Markdown, on one line, also in a table.
std::string escape_markdown(std::string_view text);

/// A code span of Markdown, on one line, also in a table.
std::string code_markdown(std::string_view text);

}  // namespace attest
