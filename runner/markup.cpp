// SPDX-License-Identifier: Apache-2.0
#include "runner/markup.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <cstdint>

namespace attest {
namespace {

struct Character {
  char32_t code = 0;
  std::string_view bytes;
  bool valid = false;
};

/// Takes the first character off a text; an invalid byte comes alone.
Character take(std::string_view& text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = 1;
  char32_t code = lead;
  char32_t least = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2, code = lead & 0x1Fu, least = 0x80;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3, code = lead & 0x0Fu, least = 0x800;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4, code = lead & 0x07u, least = 0x10000;
  }
  bool valid = (length > 1 || lead < 0x80) && text.size() >= length;
  for (size_t i = 1; valid && i < length; ++i) {
    valid = (byte(i) & 0xC0u) == 0x80u;
    code = (code << 6u) | (byte(i) & 0x3Fu);
  }
  // overlong forms, UTF-16 halves and what lies beyond Unicode
  valid = valid && code >= least && code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF);
  const Character taken{code, text.substr(0, valid ? length : 1), valid};
  text.remove_prefix(taken.bytes.size());
  return taken;
}

/// Control characters (C0, DEL, C1), the Unicode line ends, and those that turn the direction of text.
bool is_invisible(char32_t code) {
  return code < 0x20 || (code >= 0x7F && code <= 0x9F) || code == 0x061C || (code >= 0x200E && code <= 0x200F) ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069) || code == 0xFEFF || code == 0xFFFE ||
         code == 0xFFFF;
}

std::string shown(const Character& c) {
  if (!c.valid) return fmt::format("\\x{:02X}", static_cast<unsigned char>(c.bytes[0]));
  if (c.code == '\n') return "\\n";
  if (c.code == '\r') return "\\r";
  if (c.code == '\t') return "\\t";
  if (!is_invisible(c.code)) return std::string(c.bytes);
  const auto code = static_cast<uint32_t>(c.code);
  return code < 0x100 ? fmt::format("\\x{:02X}", code) : fmt::format("\\u{:04X}", code);
}

std::string escaped(std::string_view text, bool attribute) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Character c = take(text);
    const bool space = c.valid && (c.code == '\n' || c.code == '\t' || c.code == '\r');
    if (space && attribute) {
      out += fmt::format("&#{};", static_cast<uint32_t>(c.code));
    } else if (space) {
      if (c.code != '\r') out += c.bytes;
    } else if (c.code == '&') {
      out += "&amp;";
    } else if (c.code == '<') {
      out += "&lt;";
    } else if (c.code == '>') {
      out += "&gt;";
    } else if (c.code == '"' && attribute) {
      out += "&quot;";
    } else {
      out += shown(c);
    }
  }
  return out;
}

}  // namespace

std::string utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const Character c = take(bytes);
    out += c.valid ? c.bytes : "\uFFFD";
  }
  return out;
}

std::string printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) out += shown(take(text));
  return out;
}

size_t width(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; }));
}

std::string shortened(std::string_view text, size_t columns) {
  if (width(text) <= columns) return std::string(text);
  std::string out;
  for (size_t taken = 0; taken + 1 < columns; ++taken) out += take(text).bytes;
  return columns == 0 ? out : out + "…";
}

std::string escape_text(std::string_view text) {
  return escaped(text, false);
}

std::string escape_attribute(std::string_view text) {
  return escaped(text, true);
}

std::string escape_markdown(std::string_view text) {
  const std::string line = printable(text);
  const auto is_word = [&](size_t i) {
    return i < line.size() && std::isalnum(static_cast<unsigned char>(line[i])) != 0;
  };
  std::string out;
  for (size_t i = 0; i < line.size(); ++i) {
    const bool inside_word = line[i] == '_' && i > 0 && is_word(i - 1) && is_word(i + 1);  // with_cache is no emphasis
    if (!inside_word && std::string_view("\\`*_{}[]<>|#~&").find(line[i]) != std::string_view::npos) out += '\\';
    out += line[i];
  }
  return out;
}

std::string code_markdown(std::string_view text) {
  const std::string line = printable(text);
  // The fence is longer than any run of backticks inside; a table's | needs its backslash even in code.
  size_t longest = 0, run = 0;
  std::string out;
  for (const char c : line) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
    if (c == '|') out += '\\';
    out += c;
  }
  const std::string fence(longest + 1, '`');
  const std::string_view pad = longest > 0 ? " " : "";
  return fmt::format("{}{}{}{}{}", fence, pad, out, pad, fence);
}

}  // namespace attest
