// SPDX-License-Identifier: Apache-2.0
#include "runner/explain.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "runner/markup.h"
#include "runner/report_text.h"

namespace attest {
namespace {

const std::vector<std::string> kVerdicts{"explained", "unexplained", "nothing", "unavailable"};
constexpr size_t kColumns = 100;
constexpr size_t kBriefPortraits = 3;

Json strings(const std::vector<std::string>& list) {
  Json json = Json::array();
  for (const std::string& item : list) json.push_back(utf8(item));
  return json;
}

Json to_json(const BugPortrait& bug) {
  return {{"id", bug.id},           {"area", bug.area},         {"fault", bug.fault},
          {"symptom", bug.symptom}, {"look_for", bug.look_for}, {"links", strings(bug.links)}};
}

Json to_json(const Explanation& one) {
  Json bugs = Json::array(), portraits = Json::array();
  for (const auto& together : one.bugs) bugs.push_back(strings(together));
  for (const BugPortrait& bug : one.portraits) portraits.push_back(to_json(bug));
  return {{"bugs", std::move(bugs)},      {"whole", one.whole},          {"explained", one.explained},
          {"unclear", one.unclear},       {"silent", one.silent},        {"contradicted", one.contradicted},
          {"variant", one.variant},       {"cases", strings(one.cases)}, {"clauses", strings(one.clauses)},
          {"against", utf8(one.against)}, {"apart", utf8(one.apart)},    {"portraits", std::move(portraits)}};
}

BugPortrait portrait_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  BugPortrait bug;
  bug.id = fields.required<std::string>("id");
  bug.area = fields.required<std::string>("area");
  bug.fault = fields.required<std::string>("fault");
  bug.symptom = fields.required<std::string>("symptom");
  bug.look_for = fields.required<std::string>("look_for");
  bug.links = fields.required<std::vector<std::string>>("links");
  fields.finish();
  return bug;
}

Explanation explanation_from_json(const Json& json, const std::string& place) {
  Fields fields(json, place);
  Explanation one;
  one.bugs = fields.list("bugs", json_to<std::vector<std::string>>);
  one.whole = fields.required<bool>("whole");
  one.explained = fields.required<int64_t>("explained");
  one.unclear = fields.required<int64_t>("unclear");
  one.silent = fields.required<int64_t>("silent");
  one.contradicted = fields.required<int64_t>("contradicted");
  one.variant = fields.required<std::string>("variant");
  one.cases = fields.required<std::vector<std::string>>("cases");
  one.clauses = fields.required<std::vector<std::string>>("clauses");
  one.against = fields.required<std::string>("against");
  one.apart = fields.required<std::string>("apart");
  one.portraits = fields.list("portraits", portrait_from_json);
  fields.finish();
  return one;
}

bool contains(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

/// "a", "a or b", "a, b or c".
std::string either(const std::vector<std::string>& list) {
  std::string text;
  for (size_t i = 0; i < list.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == list.size() ? " or " : ", ") + list[i];
  }
  return text;
}

std::string painted(std::string_view text, const char* code, bool colour) {
  return colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

/// Paragraphs of at most kColumns, each line after this many spaces.
std::string wrapped(std::string_view text, size_t indent) {
  std::string lines, line;
  const auto flush = [&] {
    if (!line.empty()) lines += std::string(indent, ' ') + line + "\n";
    line.clear();
  };
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    const std::string word(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (word.empty()) continue;
    if (!line.empty() && indent + width(line) + 1 + width(word) > kColumns) flush();
    line += (line.empty() ? "" : " ") + word;
  }
  flush();
  return lines;
}

/// What is said of one bug, as sentences.
std::string story(const BugPortrait& bug) {
  return fmt::format("{} What its user sees: {}", bug.fault, bug.symptom);
}

std::string part_claim(const Explanation& one, const Diagnosis& diagnosis) {
  std::string text =
      fmt::format("{} explains {} of {} failing cases", bugs_text(one), one.explained, diagnosis.compared);
  if (one.contradicted > 0) text += fmt::format(", but in {} it would show otherwise", one.contradicted);
  if (one.silent > 0) text += fmt::format(", and in {} it would not show", one.silent);
  return text;
}

std::string facts(const Explanation& one) {
  std::vector<std::string> parts;
  for (const BugPortrait& bug : one.portraits) {
    if (!contains(parts, bug.area)) parts.push_back(bug.area);
  }
  std::string text = fmt::format("area {}", fmt::join(parts, ", "));
  if (!one.clauses.empty()) {
    text += fmt::format(" · clause{} {}", one.clauses.size() == 1 ? "" : "s", fmt::join(one.clauses, ", "));
  }
  if (!one.cases.empty()) text += fmt::format(" · seen in {}", fmt::join(one.cases, ", "));
  return text;
}

std::string effort(const Diagnosis& diagnosis) {
  return fmt::format("{} predictions over {} failing and {} passing cases, {}", diagnosis.predictions,
                     diagnosis.compared, diagnosis.passing, seconds_text(diagnosis.seconds));
}

std::string safe(std::string_view text) {
  return escape_text(printable(text));
}

/// Which correct kernel the prediction was made with, where that matters.
std::string kind(const Explanation& one) {
  return one.variant.empty() ? "" : fmt::format("As it shows in a kernel of the kind \"{}\".", one.variant);
}

std::vector<std::string> lines(std::string_view text) {
  std::vector<std::string> list;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    list.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return list;
}

/// An address of any other kind stays text.
bool is_address(const std::string& link) {
  return link.starts_with("https://github.com/");
}

std::string portrait_html(const BugPortrait& bug) {
  std::string text =
      fmt::format("<div class=\"finding\"><p><span class=\"kind\">{}</span> <span class=\"chip\">{}</span> {}</p>",
                  safe(bug.id), safe(bug.area), safe(story(bug)));
  if (!bug.look_for.empty()) text += fmt::format("<p>Look for: {}</p>", safe(bug.look_for));
  std::string links;
  for (const std::string& link : bug.links) {
    links += is_address(link) ? fmt::format("<a href=\"{}\">{}</a> ", escape_attribute(printable(link)),
                                            safe(std::string_view(link).substr(19)))
                              : safe(link) + " ";
  }
  if (!links.empty()) text += fmt::format("<p>{}</p>", links);
  return text + "</div>\n";
}

}  // namespace

Json to_json(const Diagnosis& diagnosis) {
  Json explanations = Json::array();
  for (const Explanation& one : diagnosis.explanations) explanations.push_back(to_json(one));
  Json json{{"record", "diagnosis"},        {"verdict", kVerdicts[static_cast<size_t>(diagnosis.verdict)]},
            {"line", utf8(diagnosis.line)}, {"explanations", std::move(explanations)},
            {"failing", diagnosis.failing}, {"compared", diagnosis.compared},
            {"passing", diagnosis.passing}, {"predictions", diagnosis.predictions},
            {"seconds", diagnosis.seconds}, {"notes", strings(diagnosis.notes)}};
  if (!diagnosis.trace.empty()) json["trace"] = utf8(diagnosis.trace);
  return json;
}

Diagnosis diagnosis_from_json(Fields& fields) {
  Diagnosis diagnosis;
  diagnosis.verdict = fields.choice<Diagnosis::Verdict>("verdict", kVerdicts);
  diagnosis.line = fields.required<std::string>("line");
  diagnosis.explanations = fields.list("explanations", explanation_from_json);
  diagnosis.failing = fields.required<int64_t>("failing");
  diagnosis.compared = fields.required<int64_t>("compared");
  diagnosis.passing = fields.required<int64_t>("passing");
  diagnosis.predictions = fields.required<int64_t>("predictions");
  diagnosis.seconds = fields.required<double>("seconds");
  diagnosis.notes = fields.required<std::vector<std::string>>("notes");
  diagnosis.trace = fields.optional<std::string>("trace", "");
  if (diagnosis.verdict == Diagnosis::Verdict::explained && diagnosis.explanations.empty()) {
    throw Error::at(fields.place("explanations"), "is empty, wanted what explains it");
  }
  return diagnosis;
}

std::string bugs_text(const Explanation& explanation) {
  const auto& bugs = explanation.bugs;
  const bool single = std::all_of(bugs.begin(), bugs.end(), [](const auto& together) { return together.size() == 1; });
  if (single) {
    std::vector<std::string> names;
    for (const auto& together : bugs) names.push_back(together.front());
    return either(names);
  }
  // A bug that all of them have goes first, once.
  for (const std::string& first : bugs.front()) {
    const bool common = std::all_of(bugs.begin(), bugs.end(), [&](const auto& together) {
      return together.size() == 2 && contains(together, first);
    });
    if (!common) continue;
    std::vector<std::string> others;
    for (const auto& together : bugs) others.push_back(together[0] == first ? together[1] : together[0]);
    return fmt::format("{} together with {}", first, either(others));
  }
  std::vector<std::string> texts;
  for (const auto& together : bugs) texts.push_back(fmt::format("{}", fmt::join(together, " together with ")));
  return either(texts);
}

std::string claim_text(const Explanation& explanation, const Diagnosis& diagnosis) {
  std::string text = fmt::format("{} explains {} of {} failing case{}", bugs_text(explanation), explanation.explained,
                                 diagnosis.compared, diagnosis.compared == 1 ? "" : "s");
  std::vector<std::string> remarks;
  if (diagnosis.failing > diagnosis.compared) remarks.push_back(fmt::format("compared, of {}", diagnosis.failing));
  if (explanation.unclear > 0) remarks.push_back(fmt::format("{} too near to tell", explanation.unclear));
  if (!remarks.empty()) text += fmt::format(" ({})", fmt::join(remarks, "; "));
  text += explanation.contradicted > 0 ? fmt::format(", contradicted by {}", explanation.contradicted)
                                       : std::string(", contradicted by none");
  return text + (diagnosis.passing > 0 ? fmt::format(" of {} passing ones", diagnosis.passing) : "");
}

std::string diagnosis_text(const Diagnosis& diagnosis, bool colour, Detail detail) {
  const bool explained = diagnosis.verdict == Diagnosis::Verdict::explained;
  std::string text = painted("Diagnosis", "1", colour) + "\n";
  text += "  " + painted(printable(diagnosis.line), explained ? "1" : "33", colour) + "\n";
  for (size_t i = 0; i < diagnosis.explanations.size(); ++i) {
    const Explanation& one = diagnosis.explanations[i];
    if (!one.whole) {
      text += fmt::format("  a part at best: {}\n", printable(part_claim(one, diagnosis)));
      if (!one.against.empty()) text += wrapped("against it: " + printable(one.against), 6);
      continue;
    }
    if (i > 0) text += fmt::format("  less exactly: {}\n", printable(claim_text(one, diagnosis)));
    text += wrapped(printable(facts(one)), 4);
    text += wrapped(printable(kind(one)), 4);
    if (!one.apart.empty()) text += wrapped(printable(one.apart), 4);
    if (i > 0) continue;
    for (size_t b = 0; b < one.portraits.size(); ++b) {
      if (detail == Detail::brief && b == kBriefPortraits) {
        text += fmt::format("    and {} more\n", one.portraits.size() - b);
        break;
      }
      const BugPortrait& bug = one.portraits[b];
      text += fmt::format("    {}\n", painted(printable(bug.id), "1", colour));
      text += wrapped(printable(story(bug)), 6);
      if (!bug.look_for.empty()) text += wrapped("Look for: " + printable(bug.look_for), 6);
      if (detail == Detail::brief) continue;
      for (const std::string& link : bug.links) text += fmt::format("      {}\n", printable(link));
    }
  }
  for (const std::string& note : diagnosis.notes) text += wrapped("note: " + printable(note), 2);
  if (diagnosis.predictions > 0) text += painted(fmt::format("  {}\n", effort(diagnosis)), "2", colour);
  if (detail == Detail::full && !diagnosis.trace.empty()) text += "\n" + diagnosis.trace;
  return text;
}

std::string diagnosis_html(const Diagnosis& diagnosis) {
  const bool explained = diagnosis.verdict == Diagnosis::Verdict::explained;
  std::string text = fmt::format(
      "<h2>Diagnosis <small>{}</small></h2>\n<div class=\"card diagnosis{}\">\n<p class=\"claim\">{}</p>\n",
      diagnosis.predictions > 0 ? safe(effort(diagnosis)) : "", explained ? "" : " open", safe(diagnosis.line));
  const auto paragraph = [&](std::string_view css, const std::string& words) {
    if (!words.empty()) text += fmt::format("<p class=\"{}\">{}</p>\n", css, safe(words));
  };
  for (size_t i = 0; i < diagnosis.explanations.size(); ++i) {
    const Explanation& one = diagnosis.explanations[i];
    if (!one.whole) {
      paragraph("", "A part at best: " + part_claim(one, diagnosis));
      paragraph("mono soft", one.against);
    } else {
      if (i > 0) paragraph("", "Less exactly: " + claim_text(one, diagnosis));
      paragraph("soft", facts(one));
      paragraph("soft", kind(one));
      paragraph("soft", one.apart);
    }
    for (const BugPortrait& bug : one.portraits) text += portrait_html(bug);
  }
  for (const std::string& note : diagnosis.notes) paragraph("soft", "Note: " + note);
  if (!diagnosis.trace.empty()) {
    std::string trace;
    for (const std::string& line : lines(diagnosis.trace)) trace += safe(line) + "\n";
    text += fmt::format(
        "<details><summary>Trace of the simplest failing case</summary><pre class=\"trace\">{}</pre></details>\n",
        trace);
  }
  return text + "</div>\n";
}

std::string diagnosis_markdown(const Diagnosis& diagnosis) {
  std::string text = fmt::format("\n## Diagnosis\n\n**{}**\n", escape_markdown(diagnosis.line));
  for (size_t i = 0; i < diagnosis.explanations.size(); ++i) {
    const Explanation& one = diagnosis.explanations[i];
    if (!one.whole) {
      text += fmt::format("\n- a part at best: {}", escape_markdown(part_claim(one, diagnosis)));
      continue;
    }
    if (i > 0) text += fmt::format("\nLess exactly: {}\n", escape_markdown(claim_text(one, diagnosis)));
    text += fmt::format("\n{}\n", escape_markdown(facts(one)));
    if (!one.apart.empty()) text += fmt::format("\n{}\n", escape_markdown(one.apart));
    if (i > 0) continue;
    text += "\n";
    for (const BugPortrait& bug : one.portraits) {
      text += fmt::format("- {}: {}", code_markdown(bug.id), escape_markdown(story(bug)));
      if (!bug.look_for.empty()) text += " Look for: " + escape_markdown(bug.look_for);
      for (const std::string& link : bug.links) {
        if (is_address(link)) text += fmt::format(" <{}>", escape_markdown(link));
      }
      text += "\n";
    }
  }
  for (const std::string& note : diagnosis.notes) text += fmt::format("\nNote: {}\n", escape_markdown(note));
  return text;
}

}  // namespace attest
