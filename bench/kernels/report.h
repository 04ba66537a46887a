// SPDX-License-Identifier: Apache-2.0
// What every kernel benchmark shares, on the CPU and on the GPU: options, timing statistics, the line per case, JSON.
//
// A case is first proven against a reference and only then timed; a wrong case is printed as WRONG, keeps its numbers
// out of the record and makes the program exit with 1. A line reads
//
//   paged_decode bf16 H32/8 D128 S64 L4096 bs16 | 371 us [369 379] | 1.07 GB 2.89 TB/s | 86 % of 3.02 TB/s | err 1.9e-3
//   ok
//
// median [5th 95th percentile] | compulsory bytes and achieved rate | fraction of the roof | error. The roof is
// measured in the same run, never taken from a datasheet: of the memory roof and the arithmetic roof the one that
// bounds the case is printed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace bench {

struct Options {
  bool quick = false;  // fewer repetitions and only the small cases
  std::string json;    // file for the machine-readable record
  std::string filter;  // run the cases whose name contains this
  std::string isa;     // CPU only: force an instruction set
  int threads = 0;     // CPU only: 0 = all cores
};

[[noreturn]] inline void usage(const char* program, int code) {
  std::fprintf(code ? stderr : stdout, "usage: %s [--quick] [--json FILE] [--filter TEXT] [--threads N] [--isa NAME]\n",
               program);
  std::exit(code);
}

inline Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--help") usage(argv[0], 0);
    if (flag == "--quick") {
      options.quick = true;
      continue;
    }
    if (i + 1 >= argc) usage(argv[0], 2);
    const std::string value = argv[++i];
    if (flag == "--json")
      options.json = value;
    else if (flag == "--filter")
      options.filter = value;
    else if (flag == "--isa")
      options.isa = value;
    else if (flag == "--threads")
      options.threads = std::atoi(value.c_str());
    else
      usage(argv[0], 2);
  }
  return options;
}

struct Quantiles {
  double median = 0, p5 = 0, p95 = 0;
};

inline Quantiles quantiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) { return values[static_cast<size_t>(std::lround(q * (values.size() - 1)))]; };
  return {at(0.5), at(0.05), at(0.95)};
}

// The roofs of this machine, measured by the program itself. 0 = not measured.
struct Roof {
  double bytes_per_s = 0, flops_per_s = 0;
};

struct Case {
  std::string name;
  double bytes = 0;  // compulsory traffic: each input read once, each output written once
  double flops = 0;
  double error = 0;  // relative Frobenius error against the reference; NaN never passes
  double tolerance = 0;
  std::vector<double> times_us;  // empty when the case was wrong
  bool roofed = true;            // false: runs from a cache or over another bus, so the roof says nothing about it
  std::string note;              // appended to the line
};

inline std::string rate(double value, const char* unit) {
  char text[32];
  const char* prefix[] = {"", "k", "M", "G", "T", "P"};
  int i = 0;
  while (value >= 1000 && i < 5) value /= 1000, ++i;
  std::snprintf(text, sizeof(text),
                value < 10    ? "%.2f %s%s"
                : value < 100 ? "%.1f %s%s"
                              : "%.0f %s%s",
                value, prefix[i], unit);
  return text;
}

inline std::string micros(double us) {
  char text[32];
  std::snprintf(text, sizeof(text), us < 10 ? "%.2f" : us < 100 ? "%.1f" : "%.0f", us);
  return text;
}

class Report {
 public:
  Report(Options options, std::string device) : options_(std::move(options)), device_(std::move(device)) {
    std::printf("# %s\n", device_.c_str());
  }
  ~Report() { write_json(); }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  void set_roof(Roof roof) {
    roof_ = roof;
    std::printf("# roof measured here: memory %s", rate(roof.bytes_per_s, "B/s").c_str());
    if (roof.flops_per_s > 0) std::printf(", arithmetic %s", rate(roof.flops_per_s, "FLOP/s").c_str());
    std::printf("\n");
    std::fflush(stdout);
  }
  const Roof& roof() const { return roof_; }
  const Options& options() const { return options_; }

  bool wants(const std::string& name) const { return name.find(options_.filter) != std::string::npos; }

  static bool correct(const Case& c) { return c.error <= c.tolerance; }  // false for NaN

  void add(const Case& c) {
    std::string line = c.name;
    if (correct(c) && !c.times_us.empty()) line += timing_text(c);
    char error[64];
    std::snprintf(error, sizeof(error), " | err %.1e %s", c.error, correct(c) ? "ok" : "WRONG");
    line += error;
    if (!correct(c)) ++num_wrong_;
    if (!c.note.empty()) line += " | " + c.note;
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
    cases_.push_back(c);
  }

  int exit_code() const {
    if (num_wrong_) std::fprintf(stderr, "%d case(s) wrong\n", num_wrong_);
    if (cases_.empty()) std::fprintf(stderr, "no case was run\n");
    return num_wrong_ || cases_.empty() ? 1 : 0;
  }

 private:
  std::string timing_text(const Case& c) const {
    const Quantiles q = quantiles(c.times_us);
    const double seconds = q.median * 1e-6;
    std::string text = " | " + micros(q.median) + " us [" + micros(q.p5) + " " + micros(q.p95) + "] | " +
                       rate(c.bytes, "B") + " " + rate(c.bytes / seconds, "B/s");
    if (c.flops > 0) text += " " + rate(c.flops / seconds, "FLOP/s");
    const double memory = roof_.bytes_per_s > 0 ? c.bytes / roof_.bytes_per_s : 0;
    const double arithmetic = roof_.flops_per_s > 0 ? c.flops / roof_.flops_per_s : 0;
    char roof[64] = "";
    if (c.roofed && std::max(memory, arithmetic) > 0) {
      std::snprintf(
          roof, sizeof(roof), " | %.0f %% of %s", 100 * std::max(memory, arithmetic) / seconds,
          memory >= arithmetic ? rate(roof_.bytes_per_s, "B/s").c_str() : rate(roof_.flops_per_s, "FLOP/s").c_str());
    }
    return text + roof;
  }

  static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return out + "\"";
  }

  void write_json() const {
    if (options_.json.empty()) return;
    std::FILE* file = std::fopen(options_.json.c_str(), "w");
    if (!file) {
      std::fprintf(stderr, "cannot write %s\n", options_.json.c_str());
      return;
    }
    std::fprintf(file, "{\"device\": %s, \"memory_bytes_per_s\": %.6g, \"flops_per_s\": %.6g, \"cases\": [",
                 quoted(device_).c_str(), roof_.bytes_per_s, roof_.flops_per_s);
    const char* separator = "\n";
    for (const Case& c : cases_) {
      std::fprintf(file, "%s  {\"name\": %s, \"correct\": %s", separator, quoted(c.name).c_str(),
                   correct(c) ? "true" : "false");
      if (std::isfinite(c.error)) std::fprintf(file, ", \"error\": %.3g", c.error);
      if (correct(c) && !c.times_us.empty()) {
        const Quantiles q = quantiles(c.times_us);
        std::fprintf(file, ", \"median_us\": %.4g, \"p5_us\": %.4g, \"p95_us\": %.4g, \"bytes\": %.0f, \"flops\": %.0f",
                     q.median, q.p5, q.p95, c.bytes, c.flops);
      }
      std::fprintf(file, "}");
      separator = ",\n";
    }
    std::fprintf(file, "\n]}\n");
    std::fclose(file);
  }

  Options options_;
  std::string device_;
  Roof roof_;
  std::vector<Case> cases_;
  int num_wrong_ = 0;
};

}  // namespace bench
