#include "serving/engine/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include "serving/engine/prometheus_metrics.h"

namespace backstory {
namespace {

using ::testing::HasSubstr;

TEST(MemoryMetricsTest, KeepsValuesByNameAndLabels) {
  MemoryMetrics metrics;
  metrics.GetCounter("backstory_a_total", "help", {{"x", "1"}, {"y", "2"}})->Add(2);
  metrics.GetCounter("backstory_a_total", "help", {{"x", "1"}, {"y", "2"}})->Add();
  metrics.GetGauge("backstory_b", "help")->Set(-4);
  metrics.GetHistogram("backstory_c_seconds", "help", LatencyBoundsSeconds())->Observe(0.5);
  EXPECT_EQ(metrics.Value("backstory_a_total{x=\"1\",y=\"2\"}"), 3);
  EXPECT_EQ(metrics.Value("backstory_a_total"), 0);
  EXPECT_EQ(metrics.Value("backstory_b"), -4);
  EXPECT_EQ(metrics.Value("backstory_c_seconds"), 1);
}

TEST(PrometheusMetricsTest, GivesOneHandlePerMetricAndExportsIt) {
  PrometheusMetrics metrics;
  Counter* counter = metrics.GetCounter("backstory_a_total", "Things", {{"kind", "x"}});
  EXPECT_EQ(metrics.GetCounter("backstory_a_total", "Things", {{"kind", "x"}}), counter);
  EXPECT_NE(metrics.GetCounter("backstory_a_total", "Things", {{"kind", "y"}}), counter);
  counter->Add(3);
  metrics.GetGauge("backstory_b", "Level")->Set(7);
  Histogram* histogram = metrics.GetHistogram("backstory_c_seconds", "Time", {0.1, 1}, {});
  EXPECT_EQ(metrics.GetHistogram("backstory_c_seconds", "Time", {0.1, 1}, {}), histogram);
  histogram->Observe(0.5);
  const std::string text = prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
  EXPECT_THAT(text, HasSubstr("# HELP backstory_a_total Things"));
  EXPECT_THAT(text, HasSubstr("backstory_a_total{kind=\"x\"} 3"));
  EXPECT_THAT(text, HasSubstr("backstory_b 7"));
  EXPECT_THAT(text, HasSubstr("backstory_c_seconds_bucket{le=\"0.1\"} 0"));
  EXPECT_THAT(text, HasSubstr("backstory_c_seconds_bucket{le=\"1\"} 1"));
}

}  // namespace
}  // namespace backstory
