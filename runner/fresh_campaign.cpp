// SPDX-License-Identifier: Apache-2.0
#include "runner/fresh_campaign.h"

#include <chrono>
#include <cmath>
#include <optional>

#include "golden/oracle.h"
#include "runner/forked.h"
#include "runner/markup.h"
#include "runner/random_cases.h"
#include "runner/report_text.h"

namespace attest {
namespace {

constexpr int kDraws = 50;              // for one case
constexpr size_t kReportedAlarms = 20;  // on the console
constexpr double kSure = 1.0 / 16;

/// A random case with all that it is played with.
struct Drawn {
  explicit Drawn(Case drawn) : c(std::move(drawn)), timeline(play(c)), inputs(generate_inputs(c, timeline)) {
    OracleResult result = compute_golden(c, timeline, inputs);
    golden = std::move(result.golden);
    radius = result.worst_radius;
  }
  Case c;
  Timeline timeline;
  Inputs inputs;
  Golden golden;
  double radius = 0;
};

std::string kind_of(const Problem& p) {
  std::string kind(info(p.dtype).name);
  if (p.quantised()) kind += fmt::format(" {}", info(p.cache_dtype).name);
  return kind;
}

/// One case of the campaign, in a child. What it found goes to the parent as JSON.
void play_fresh(uint64_t seed, uint64_t first, uint64_t stride, Troupe& troupe, size_t mutants, Stage& stage) {
  stage.enter(0);
  std::optional<Drawn> drawn;
  uint64_t number = first;
  int64_t refused = 0;
  for (;; ++refused, number += stride) {
    try {
      drawn.emplace(random_case(seed, number));
      break;
    } catch (const Error& error) {
      if (refused == kDraws)
        throw Error(fmt::format("{} draws in a row are no case; the last: {}", kDraws, error.what()));
    }
  }
  stage.send(Json{{"number", number}, {"began", true}}.dump());
  Json found{
      {"number", number}, {"refused", refused}, {"kind", kind_of(drawn->c.problem)}, {"unsure", drawn->radius > kSure}};
  double worst = 0;
  for (size_t m = 0; m < mutants; ++m) {
    if (!stage.enter(m + 1)) continue;
    const Performance performance = troupe[m].play({&drawn->c, &drawn->timeline, &drawn->inputs, &drawn->golden});
    if (performance.status != Status::pass) {
      stage.send(
          Json{{"number", number}, {"mutant", m}, {"reason", shortened(printable(performance.reason), 400)}}.dump());
    } else if (performance.worst_ratio.value_or(0) >= worst) {
      worst = performance.worst_ratio.value_or(0);
      found["worst"] = worst;
      found["mutant"] = m;
    }
  }
  stage.send(found.dump());
}

}  // namespace

FreshCampaign run_fresh_campaign(const BackendLibrary& library, const std::vector<Mutant>& correct, uint64_t seed,
                                 int64_t cases, int jobs,
                                 const std::function<void(size_t done, size_t planned)>& progress) {
  const auto start = std::chrono::steady_clock::now();
  FreshCampaign campaign;
  campaign.seed = seed;
  const auto planned = static_cast<size_t>(cases);
  Troupe troupe(library, correct);
  Forked forked;
  forked.limit = std::chrono::minutes(5);
  forked.work = [&](size_t task, Stage& stage) { play_fresh(seed, task, planned, troupe, correct.size(), stage); };
  std::map<size_t, uint64_t> numbers;  // of the cases that tasks play
  forked.received = [&](size_t task, std::string_view message) {
    const Json json = Json::parse(message);
    const uint64_t number = json.at("number");
    if (json.contains("began")) {
      numbers[task] = number;
      return;
    }
    if (json.contains("reason")) {
      campaign.alarms.push_back({correct[json.at("mutant").get<size_t>()].id, json.at("reason"), number});
      return;
    }
    ++campaign.cases;
    campaign.plays += static_cast<int64_t>(correct.size());
    campaign.refused += json.at("refused").get<int64_t>();
    campaign.unsure += json.at("unsure").get<bool>() ? 1 : 0;
    if (!json.contains("worst")) return;
    Closest& worst = campaign.worst[json.at("kind")];
    if (const double ratio = json.at("worst"); worst.c.empty() || ratio > worst.ratio) {
      worst = {ratio, correct[json.at("mutant").get<size_t>()].id, fmt::format("case {}", number)};
    }
  };
  forked.lost = [&](size_t task, size_t part, const std::string& how) {
    campaign.alarms.push_back(
        {part == 0 ? "the oracle" : correct[part - 1].id, how, numbers.contains(task) ? numbers[task] : task});
  };
  forked.finished = [&, done = size_t{0}](size_t) mutable {
    if (progress) progress(++done, planned);
  };
  forked.run(planned, jobs);
  campaign.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return campaign;
}

Json to_json(const FreshCampaign& campaign) {
  Json json{{"schema", "attest/campaign/1"}, {"seed", campaign.seed},       {"cases", campaign.cases},
            {"plays", campaign.plays},       {"refused", campaign.refused}, {"unsure", campaign.unsure},
            {"green", campaign.green()},     {"worst", Json::object()},     {"alarms", Json::array()}};
  for (const auto& [kind, worst] : campaign.worst) {
    json["worst"][kind] = {{"ratio", worst.ratio}, {"variant", worst.mutant}, {"case", worst.c}};
  }
  for (const FreshCampaign::Alarm& alarm : campaign.alarms) {
    json["alarms"].push_back({{"variant", alarm.mutant},
                              {"reason", alarm.reason},
                              {"number", alarm.number},
                              {"case", random_case_json(campaign.seed, alarm.number)}});
  }
  return json;
}

std::string console_summary(const FreshCampaign& campaign, bool colour) {
  const auto painted = [&](std::string_view text, const char* code) {
    return colour ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
  };
  std::string text =
      painted(fmt::format("{:<14} {:>20}  {}\n", "Values", "worst error/allowed", "variant and case"), "1");
  for (const auto& [kind, worst] : campaign.worst) {
    text += fmt::format("{:<14} {:>20}  {}, {}\n", kind, ratio_text(worst.ratio), worst.mutant, worst.c);
  }
  if (!campaign.alarms.empty()) {
    text += "\n" + painted(fmt::format("False alarms: {}\n", campaign.alarms.size()), "31");
    for (size_t i = 0; i < std::min(kReportedAlarms, campaign.alarms.size()); ++i) {
      const FreshCampaign::Alarm& alarm = campaign.alarms[i];
      text += fmt::format("  {} on case {}: {}\n", alarm.mutant, alarm.number, alarm.reason);
    }
  }
  text += fmt::format("\n{}  {} in {} of {}, seed {}; {} drawn again",
                      campaign.green() ? painted("GREEN", "1;32") : painted("RED", "1;31"),
                      count_text(static_cast<int64_t>(campaign.alarms.size()), "false alarm"),
                      count_text(campaign.plays, "play"), count_text(campaign.cases, "fresh case"), campaign.seed,
                      campaign.refused);
  if (campaign.unsure > 0) text += fmt::format("; {} of the goldens are not sure enough", campaign.unsure);
  return text + "\n";
}

}  // namespace attest
